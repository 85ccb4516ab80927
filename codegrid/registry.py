"""Systems by name: tables of quantizers, tokenizers, networks, priors and classifiers, and `load` for any folder.

A new system is a file and a line in `BUILT_IN`. The lines are strings, so that command lines can be built without
importing torch.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_type_hints

from .errors import InputError, reason_of
from .hub import PIPELINE_FOLDERS, fetch
from .limits import make_options, short

if TYPE_CHECKING:
    import torch

NAME = re.compile(r"[a-z][a-z0-9-]*")
OF_OTHERS = ("diffusion_pytorch_model.safetensors", "encoder.pkl")  # in folders of checkpoints of other projects
ENTRY_POINTS = "codegrid"  # the group in which packages name modules that register their systems

# kind → name → (class, its dataclass of options), as `module:attribute` below this package
BUILT_IN: dict[str, dict[str, tuple[str, str]]] = {
    "quantizer": {
        "ema": ("stage1_vqvae.quantizers.codebook:EMAQuantizer", "stage1_vqvae.options:CodebookOptions"),
        "gradient": ("stage1_vqvae.quantizers.codebook:GradientQuantizer", "stage1_vqvae.options:CodebookOptions"),
        "clustered": ("stage1_vqvae.quantizers.clustered:ClusteredQuantizer", "stage1_vqvae.options:ClusteredOptions"),
        "clustered-gradient": (
            "stage1_vqvae.quantizers.clustered:ClusteredGradientQuantizer", "stage1_vqvae.options:ClusteredOptions",
        ),
        "sim": ("stage1_vqvae.quantizers.sim:SimQuantizer", "stage1_vqvae.options:CodebookOptions"),
        "gumbel": ("stage1_vqvae.quantizers.gumbel:GumbelQuantizer", "stage1_vqvae.options:GumbelOptions"),
        "fsq": ("stage1_vqvae.quantizers.fsq:FSQuantizer", "stage1_vqvae.options:FSQOptions"),
        "lfq": ("stage1_vqvae.quantizers.binary:LFQuantizer", "stage1_vqvae.options:LFQOptions"),
        "bsq": ("stage1_vqvae.quantizers.binary:BSQuantizer", "stage1_vqvae.options:BSQOptions"),
        "residual": ("stage1_vqvae.quantizers.residual:ResidualQuantizer", "stage1_vqvae.options:ResidualOptions"),
        "product": ("stage1_vqvae.quantizers.product:ProductQuantizer", "stage1_vqvae.options:ProductOptions"),
        "multiscale": (
            "stage1_vqvae.quantizers.multiscale:MultiscaleQuantizer", "stage1_vqvae.options:MultiscaleOptions",
        ),
    },
    "tokenizer": {
        "vqvae": ("stage1_vqvae.tokenizer:VQVAE", "stage1_vqvae.options:VQVAEOptions"),
        "vqvae2": ("stage1_vqvae.hierarchical:HierarchicalVQVAE", "stage1_vqvae.options:HierarchicalOptions"),
        "wave": ("stage1_vqvae.waves:WaveVQVAE", "stage1_vqvae.wave_options:WaveOptions"),
        "codes": ("stage1_vqvae.code_tokenizer:CodeTokenizer", "stage1_vqvae.options:CodesOptions"),
    },
    "network": {
        "paper": ("stage1_vqvae.networks:PaperNetwork", "stage1_vqvae.network_options:PaperOptions"),
        "resnet": ("stage1_vqvae.resnet:ResNet", "stage1_vqvae.network_options:ResNetOptions"),
        "notebook": ("stage1_vqvae.notebook:NotebookNetwork", "stage1_vqvae.network_options:NotebookOptions"),
        "dalle": ("stage1_vqvae.dalle:DallENetwork", "stage1_vqvae.network_options:DallEOptions"),
        "vqgan": ("stage1_vqvae.vqgan:VQGANNetwork", "stage1_vqvae.network_options:VQGANOptions"),
    },
    "prior": {
        "pixelcnn": ("stage2_prior.pixelcnn.network:GatedPixelCNN", "stage2_prior.options:PixelCNNOptions"),
        "pixelsnail": ("stage2_prior.pixelsnail.network:PixelSNAIL", "stage2_prior.options:PixelSNAILOptions"),
        "transformer": (
            "stage2_prior.transformer.network:CausalTransformer", "stage2_prior.options:TransformerOptions",
        ),
        "gpt": ("stage2_prior.transformer.gpt:GPT", "stage2_prior.options:GPTOptions"),
        "wavenet": ("stage2_prior.wavenet.network:WaveNet", "stage2_prior.options:WaveNetOptions"),
        "video": ("stage2_prior.pixelcnn.video:VideoPrior", "stage2_prior.options:VideoOptions"),
        "next-scale": ("stage2_prior.next_scale.prior:NextScalePrior", "stage2_prior.options:NextScaleOptions"),
        "maskgit": ("stage2_prior.maskgit.network:MaskGIT", "stage2_prior.options:MaskGITOptions"),
        "diffusion": ("stage2_prior.diffusion.prior:DiffusionPrior", "stage2_prior.options:DiffusionOptions"),
    },
    "classifier": {
        "small": ("pipelines.evaluation.classifier:SmallClassifier", "registry:NoOptions"),
    },
}  # fmt: skip

_registered: dict[str, dict[str, type]] = {kind: {} for kind in BUILT_IN}
_plugins_loaded = False


@dataclass(frozen=True)
class NameOf:
    """Marks a field that names a system: `quantizer: Annotated[str, NameOf("quantizer")]`, or a tuple of such names.

    The options of the named systems become options of the class that has the field.
    """

    kind: str


@dataclass(frozen=True)
class NoOptions:
    """The options of a system that has none."""


class Table(Mapping[str, type]):
    """The systems of one kind: name → class. A class is imported when it is looked up."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __iter__(self) -> Iterator[str]:
        _load_entry_points()
        return iter([*BUILT_IN[self.kind], *_registered[self.kind]])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:  # without an import
        return isinstance(name, str) and name in list(self)

    def __getitem__(self, name: str) -> type:
        _load_entry_points()
        if name in BUILT_IN[self.kind]:
            return _find(BUILT_IN[self.kind][name][0])
        return _registered[self.kind][name]

    def options(self, name: str) -> type:
        """Return the dataclass of a system's options, without importing torch for a built-in one."""
        self.check(name)
        if name in BUILT_IN[self.kind]:
            return _find(BUILT_IN[self.kind][name][1])
        return getattr(self[name], "options", NoOptions)

    def name_of(self, cls: type) -> str:
        """Return the name of a class. Raises `InputError` if it was not registered."""
        target = f"{cls.__module__.removeprefix(__package__ + '.')}:{cls.__qualname__}"
        names = [name for name, (ours, _) in BUILT_IN[self.kind].items() if ours == target]
        names += [name for name, registered in _registered[self.kind].items() if registered is cls]
        if names:
            return names[0]
        call = f"codegrid.register({self.kind!r}, 'its-name', {cls.__name__})"
        raise InputError(f"{cls.__name__} has no name yet: {call} gives it one")

    def check(self, name: object, parameter: str = "") -> None:
        """Raise `InputError`, naming the parameter, if no system has this name."""
        if name not in self:
            words = f"no {self.kind} has this name: choose one of {', '.join(self)}"
            remedy = "register your own with codegrid.register in a module that `plugin` names"
            raise InputError(f"`{parameter or self.kind}` {short(name)}: {words}, or {remedy}")


TABLES = {kind: Table(kind) for kind in BUILT_IN}


class Chosen(NamedTuple):
    """A system that a parameter names."""

    parameter: str
    kind: str
    system: str


def resolve_chosen(chosen: Sequence[Chosen], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Chosen]]:
    """Return the options of systems and of the parts that these name, and all of these systems.

    Args:
        given: options by name; those that a system does not have do not matter to it. The others get their defaults.

    Raises `InputError` if there is no system of a name, or an option is out of its range.
    """
    resolved: dict[str, Any] = {}
    ahead, seen = list(chosen), list[Chosen]()
    while ahead:
        parameter, kind, system = one = ahead.pop(0)
        TABLES[kind].check(system, parameter)
        if one in seen:
            continue
        seen.append(one)
        options_type = TABLES[kind].options(system)
        own = {name: given[name] for name in (item.name for item in fields(options_type)) if name in given}
        options = make_options(options_type, own, f"the {system} {kind}")
        for name, hint in get_type_hints(options_type, include_extras=True).items():
            resolved[name] = value = getattr(options, name)
            names = value if isinstance(value, tuple) else (value,) if value else ()
            ahead += [Chosen(name, marker.kind, part) for marker in names_in(hint) for part in names]
    return resolved, seen


def names_in(hint: Any) -> list[NameOf]:
    """Return the marks of a type hint, or of those that it is made of."""
    found = [marker for marker in getattr(hint, "__metadata__", ()) if isinstance(marker, NameOf)]
    return found + [marker for arm in get_args(hint) for marker in names_in(arm)]


def register(kind: str, name: str, cls: type) -> None:
    """Register a system of your own, so that its name is accepted wherever names of its kind are.

    Args:
        kind: `quantizer`, `tokenizer`, `network`, `prior` or `classifier`.
        name: its name in command lines and model folders: lower-case letters, digits and hyphens.
        cls: the class. Its attribute `options`, if there is one, is a dataclass of its keyword options, from which
            the command line is made.

    Raises `InputError` if the name is taken or not valid.
    """
    if kind not in BUILT_IN:
        raise InputError(f"`kind` {kind!r}: choose one of {', '.join(BUILT_IN)}")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"`name` {name!r}: it must be lower-case letters, digits and hyphens, and begin with a letter")
    options = getattr(cls, "options", None)
    if options is not None and not (isinstance(options, type) and is_dataclass(options)):
        raise InputError(f"`cls` {cls.__name__}: its `options` must be a dataclass")
    if name in BUILT_IN[kind] or _registered[kind].get(name, cls) is not cls:
        raise InputError(f"`name` {name!r}: another {kind} has this name already; choose a different one")
    _registered[kind][name] = cls


def load_plugin(module: str) -> None:
    """Import a user's module that registers systems, by its name or by its file, such as `some/where/mine.py`."""
    try:
        import_own(module)
    except InputError:
        raise
    except Exception as error:  # a user's module can fail in any way
        file = f"{module}.py" if Path(f"{module}.py").is_file() else "MINE.py"
        raise InputError(
            f"`plugin` {module}: it cannot be imported ({reason_of(error)}); check the name, or give its file, {file}"
        ) from error


def import_own(module: str) -> ModuleType:
    """Import a user's module by its name, or by its file, which may import other files in its folder.

    Raises `ImportError` if there is no such file, or another module has its name.
    """
    if not module.endswith(".py"):
        return import_module(module)
    file = Path(module)
    if not file.is_file():
        raise ImportError("there is no such file")
    folder = str(file.parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)  # last: nothing there must replace another module
    found = find_spec(file.stem)
    if found is None or found.origin is None or not file.samefile(found.origin):
        raise ImportError(f"another module is called {file.stem}: rename the file")
    return import_module(file.stem)


def load(source: str | Path, device: torch.device | str = "cpu") -> Any:
    """Load whatever a folder holds: a tokenizer, a prior, a classifier, or, if it holds both in folders, the pipeline.

    If a training run has not finished, its best model so far is loaded, else the last one that was validated.

    Args:
        source: a model folder, a folder with `tokenizer/` and `prior/` (or `prior-0/`, `prior-1/`, ...), or
            `hf:owner/name` on the Hugging Face hub, `hf:owner/name/folder` for a folder in it; `codegrid:digits`, which
            comes with the package; or a checkpoint of another project, as `import_model` reads it.
        device: the device to load onto.

    Raises `InputError` if the folder is missing, incomplete or damaged, or its model is not registered.

    Examples:
        >>> tokenizer = load("runs/demo/tokenizer")  # doctest: +SKIP
        >>> pipeline = load("runs/demo", device="cuda")  # doctest: +SKIP
        >>> drawn = load("codegrid:digits").sample(16, labels=[7])  # doctest: +SKIP
    """
    folder = fetch(source, ("", *PIPELINE_FOLDERS))
    if any((folder / name).is_dir() for name in ("tokenizer", "tokenizer-0")):
        pipeline = import_module(f"{__package__}.pipelines.generation.pipeline")
        return pipeline.TwoStagePipeline.from_pretrained(folder, device)
    if folder.is_file() or any((folder / name).is_file() for name in OF_OTHERS):
        return import_module(f"{__package__}.pipelines.importing.run").import_model(folder, device=device)
    return import_module(f"{__package__}.model_folder").load_model(folder, device)


def _find(target: str) -> type:
    module, _, attribute = target.partition(":")
    return getattr(import_module(f"{__package__}.{module}"), attribute)


def _load_entry_points() -> None:
    """Import the plugins of installed packages, once."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:  # another package's fault must not end every command
            print(f"warning: the plugin {point.name} cannot be loaded ({reason_of(error)})", file=sys.stderr)
