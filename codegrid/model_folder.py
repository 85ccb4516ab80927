"""Model folders: `config.json` + `model.safetensors`, checked on load, rebuilt without further arguments.

huggingface_hub has a similar mixin; ours also keeps checksums, a fingerprint and the training's provenance, finds the
class in the table of models, and takes no memory until a config is known to fit its weights. A `README.md` beside
them, the model's card, is for people: it is neither checked nor needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from typing_extensions import Self

from .budget import check_memory
from .devices import Device, find_device
from .errors import InputError, reason_of
from .extra_files import NO_FILES, digests_of_files, read_files, write_files
from .files import write_folder, write_json
from .hub import HUB_PREFIX, fetch, push_folder
from .limits import is_list_of, short
from .model_card import abilities_of, read_picture, render_card, write_card
from .registry import TABLES
from .tensors import (
    MAX_HALF,
    as_saved,
    check_finite,
    digest_of,
    in_few_bytes,
    inherit_tensors,
    read_json,
    read_tensors,
    sha256,
    write_tensors,
)
from .usable import CONFIG, WEIGHTS, load_usable

FORMAT = "codegrid model 2"
OLD_FORMAT = "codegrid model 1"
KINDS = ("tokenizer", "prior", "classifier")
COPIES = 3  # of the weights while they are loaded: the file, its tensors, the model
FIELDS = {"kind": str, "model": str, "config": dict, "provenance": dict, "fingerprint": str, "sha256": dict}


class ModelFolder:
    """Base class that gives a module `device`, `fingerprint`, `save_pretrained`, `from_pretrained` and `push_to_hub`.

    The module sets two attributes in its `__init__`: `config`, the keyword arguments that rebuild it, as JSON values;
    and `provenance`, a dict of any facts about the training, saved and loaded with the model. `files` holds those of
    `codegrid.extra_files` that it has, which the fingerprint covers. The class attribute `kind` names the table of
    `codegrid.registry` that the class is in.
    """

    kind: ClassVar[str]
    config: dict[str, Any]
    provenance: dict[str, Any]
    loaded_from: Path | None = None
    files: Mapping[str, bytes] = NO_FILES  # by name
    # descriptions of the tensors after a cast that rounded them, and before it; empty if there was none
    _rounded: tuple[dict[str, Any], ...] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__init__ = _in_float32()(cls.__init__)  # type: ignore[method-assign]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move or cast all tensors: `.to`, `.half()` and the like call this."""
        rounds = fn(torch.zeros(1)).dtype.itemsize < torch.float32.itemsize and self.device.type != "meta"
        before = self._description() if rounds else {}
        super()._apply(fn, recurse)  # type: ignore[misc]
        if rounds:
            self._rounded = (describe(self.state_dict()), before)  # type: ignore[attr-defined]
        return self

    def _description(self) -> dict[str, Any]:
        """Describe the tensors for the fingerprint; casting the whole model does not change the description."""
        found = describe(self.state_dict())  # type: ignore[attr-defined]
        return self._rounded[1] if self._rounded and found == self._rounded[0] else found

    @property
    def stack(self) -> tuple[Any, ...]:
        """Models that it consists of, in the order in which data pass through them: itself alone."""
        return (self,)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(chain(self.parameters(), self.buffers())).device  # type: ignore[attr-defined]

    def fingerprint(self) -> str:
        """Return the SHA-256 over the model's name, its config and its tensors, by name, shape and bytes.

        Buffers named `running_...` are left out: they affect further training, but no output. The tensors count in
        float32, as they are saved, so that a cast of the model (`.half()`, `.bfloat16()`) changes nothing.
        """
        name = TABLES[self.kind].name_of(type(self))
        return digest_of([name, self.config, self._description(), *filter(None, [digests_of_files(self.files)])])

    def save_pretrained(self, folder: str | Path, picture: bytes = b"") -> None:
        """Write the model folder, with its card; keep a README.md there that is not a card of ours.

        Weights that float16 holds exactly, as after `round_to_half`, are written in it.

        Args:
            picture: a PNG file that the card shows: some reconstructions, or samples of a prior.

        Raises `InputError` if a weight is infinite or not a number, or if a cast has rounded all weights since the
        model was created or loaded.
        """
        name, tensors = TABLES[self.kind].name_of(type(self)), as_saved(self.state_dict())  # type: ignore[attr-defined]
        check_finite(folder, tensors)
        if self._rounded and describe(tensors) == self._rounded[0]:
            raise InputError("the weights were rounded by a cast, such as `.half()`: save the model before casting it")
        with write_folder(folder, index=CONFIG) as staging:
            written = write_tensors(staging / WEIGHTS, in_few_bytes(tensors))
            checksums = {WEIGHTS: written, **write_files(staging, self.files)}
            fields = {
                "format": FORMAT,
                "kind": self.kind,
                "model": name,
                "config": self.config,
                "provenance": self.provenance,
                "fingerprint": fingerprint_of(name, self.config, tensors, self.files),
            }
            write_json(staging / CONFIG, {**fields, "sha256": {**checksums, CONFIG: digest_of(fields)}})
            text = render_card(fields, bool(picture), abilities_of(self))
            write_card(staging, Path(folder), text, picture, self.kind)

    @torch.no_grad()
    def round_to_half(self) -> None:
        """Round all weights to float16 and keep them as float32: from now on the model is saved in half the bytes.

        Values too large for float16, such as counts of often used entries, become its largest one. Rounding changes
        the fingerprint, so round a tokenizer before a prior learns its codes.
        """
        for tensor in self.state_dict().values():  # type: ignore[attr-defined]
            if tensor.is_floating_point():
                tensor.copy_(tensor.clamp(-MAX_HALF, MAX_HALF).half())

    def inherit(self, other: ModelFolder) -> list[str]:
        """Copy the weights of another model of this class where they fit; return, in words, what stays new."""
        ours, theirs = (model.state_dict() for model in (self, other))  # type: ignore[attr-defined]
        return inherit_tensors(ours, theirs, self.shared_rows(other))

    def shared_rows(self, other: Any) -> dict[str, tuple[list[int], list[int]]]:
        """Return, by tensor name, which rows correspond to which of another model's, unless by equal index."""
        return {}

    @classmethod
    def from_pretrained(cls, source: str | Path, device: Device = "cpu") -> Self:
        """Load a model of this class, in eval mode, from a folder, or from the hub as `hf:owner/name`.

        If a training run has not finished, its best model so far is loaded, else its last.

        Raises `InputError` if the folder does not exist, is incomplete or damaged, or holds another model.
        """
        return _load(source, device, cls.kind, TABLES[cls.kind].name_of(cls))

    def push_to_hub(self, repo_id: str, private: bool = False) -> str:
        """Upload the model folder, card included, to the Hugging Face hub as `owner/name` and return its address."""
        return push_folder(lambda folder: self.save_pretrained(folder, picture_of(self)), repo_id, private)


def picture_of(model: Any) -> bytes:
    """Return the picture on the card of the folder that a model was loaded from; empty if there was none."""
    folder = getattr(model, "loaded_from", None)
    return read_picture(folder, model.kind) if folder else b""


def load_model(source: str | Path, device: Device = "cpu", kind: str = "") -> Any:
    """Load any tokenizer, prior or classifier, in eval mode, from a folder, or from the hub as `hf:owner/name`.

    If a training run has not finished, its best model so far is loaded, else its last.

    Args:
        kind: `tokenizer`, `prior` or `classifier`, if it must be that.

    Raises `InputError` if the folder does not exist, is incomplete or damaged, holds another kind of model, or a
    model that is not registered.
    """
    return _load(source, device, kind)


def fingerprint_of(
    model: str, config: dict[str, Any], tensors: dict[str, torch.Tensor], files: Mapping[str, bytes] = NO_FILES
) -> str:
    """Return the fingerprint of a model, given its name in the table, its config, its weights and other files."""
    return digest_of([model, config, describe(tensors), *filter(None, [digests_of_files(files)])])


def describe(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return, by name, the shape and SHA-256 of each tensor that the outputs depend on."""
    return {
        name: [list(tensor.shape), sha256(tensor.contiguous().numpy().tobytes())]
        for name, tensor in as_saved(tensors).items()
        if not name.rpartition(".")[2].startswith("running_")
    }


def read_model_config(folder: Path, kind: str = "", model: str = "") -> dict[str, Any]:
    """Return the checked content of `config.json` in a model folder.

    Args:
        kind: `tokenizer`, `prior` or `classifier`, if it must be that.
        model: the model's name in the table, if it must be that.
    """
    wanted = f"{model} {kind}".strip() or "model"
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give the folder of a trained {wanted}, or {HUB_PREFIX}owner/name")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            if (folder / "model_index.json").is_file():
                raise InputError(f"{folder} is a pipeline of diffusers: give the folder of a {wanted} of codegrid")
            unfinished = "its training has not validated yet: wait, or run the same command again"
            runs = any((folder / trace).exists() for trace in ("state", "metrics.jsonl"))
            remedy = unfinished if runs else "train or copy it again"
            raise InputError(f"{folder} is incomplete: it holds no {name}; {remedy}")
    path = folder / CONFIG
    fields = read_json(path)
    checksums = fields.pop("sha256", None)
    if not isinstance(checksums, dict) or checksums.get(CONFIG) != digest_of(fields):
        raise InputError(f"{path} is damaged (its SHA-256 is not the recorded one): copy or make it again")
    if fields.get("format") == OLD_FORMAT:
        raise InputError(f"{folder} was made by codegrid 0.1, whose models this version does not read: train it again")
    if fields.get("format") != FORMAT:
        raise InputError(f"{folder} has the format {short(fields.get('format'))}, but this version reads {FORMAT!r}")
    # the digests match, but anyone can compute them
    fields["sha256"] = checksums
    for name, type_ in FIELDS.items():
        if not isinstance(fields.get(name), type_):
            raise InputError(f"{path}: {name} is {short(fields.get(name))}: copy or make it again")
    if not isinstance(checksums.get(WEIGHTS), str):
        raise InputError(f"{path} has no SHA-256 of {WEIGHTS}: copy or make it again")
    _check_model(folder, fields, kind, model)
    return fields


def _check_model(folder: Path, fields: dict[str, Any], kind: str, model: str) -> None:
    """Refuse a folder that holds a different model than wanted, or one that is not registered."""
    found = f"a {fields['kind'][:40]} ({fields['model'][:40]})"
    if fields["kind"] not in KINDS:
        raise InputError(f"{folder}: its kind {short(fields['kind'])} is neither {' nor '.join(KINDS)}: make it again")
    if kind not in ("", fields["kind"]) or model not in ("", fields["model"]):
        wanted = f"a {kind} ({model})" if model else f"a {kind}"
        raise InputError(f"{folder} holds {found}, but {wanted} is needed here")
    if fields["model"] not in TABLES[fields["kind"]]:
        remedy = "name the module that registers it (`plugin`), or call codegrid.register first"
        raise InputError(f"{folder} holds {found}, which is not registered: {remedy}")


def _load(source: str | Path, device: Device, kind: str, model: str = "") -> Any:
    device, folder = find_device(device), fetch(source)
    return load_usable(folder, lambda place: _load_folder(place, device, kind, model))


def _load_folder(folder: Path, device: torch.device, kind: str, model: str) -> Any:
    fields = read_model_config(folder, kind, model)
    cls = TABLES[fields["kind"]][fields["model"]]
    try:
        with torch.device("meta"):  # takes no memory, whatever sizes the config claims
            outline = cls(**fields["config"])
    except Exception as error:  # untrusted values can break a constructor in any way
        raise InputError(f"{folder}: this codegrid cannot rebuild the model: {reason_of(error)}") from error
    _check_classes(folder, fields)
    numbers = sum(tensor.numel() for tensor in chain(outline.parameters(), outline.buffers()))
    check_memory(f"the weights of {folder}", 4 * COPIES * numbers, "load it on a larger one")
    tensors = read_tensors(folder / WEIGHTS, fields["sha256"][WEIGHTS], like=outline.state_dict())
    check_finite(folder / WEIGHTS, as_saved(tensors))
    files = read_files(folder, fields["sha256"])
    if fingerprint_of(fields["model"], fields["config"], tensors, files) != fields["fingerprint"]:
        raise InputError(f"{folder}: its fingerprint is not the recorded one: copy or make it again")
    loaded = cls(**fields["config"])
    loaded.load_state_dict(tensors)
    # options that are newer than the model are not told: codes and priors know it by the fingerprint that it had
    loaded.config = {name: value for name, value in loaded.config.items() if name in fields["config"]}
    loaded.provenance, loaded.loaded_from, loaded.files = fields["provenance"], folder, files
    return loaded.to(device).eval()


def _check_classes(folder: Path, fields: dict[str, Any]) -> None:
    """Refuse class names that are not strings, or whose number is not that of the model's classes."""
    classes, needed = fields["provenance"].get("classes", []), fields["config"].get("num_classes")
    as_many = "classes" not in fields["provenance"] or needed is None
    if not is_list_of(classes, str) or not (as_many or needed == len(classes)):
        words = "names" if needed is None else f"the names of {needed} classes"
        raise InputError(f"{folder}: the classes in its provenance must be {words}: copy or make it again")


@contextmanager
def _in_float32() -> Iterator[None]:
    """Create weights in float32 within the block, whatever the default of torch is."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
