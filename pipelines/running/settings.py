"""Settings that several commands share. Settings of a single command are in its own file.

Every field is a flag, and its docstring is the flag's help. Its type gives the range. Nothing here imports torch.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

import tyro

from codegrid.data.names import NAMES
from codegrid.errors import InputError
from codegrid.limits import (
    MAX_SIDE,
    MAX_STEPS,
    MAX_THREADS,
    MAX_VIEWS,
    BatchSize,
    Range,
    Seed,
    check_fields,
)
from codegrid.pretrained import PREFIX, PRETRAINED, check_pretrained

from .places import MADE_BY, RUNS, find_part

Dataset = Annotated[str, tyro.conf.arg(metavar="PATH|hf:NAME|{" + ",".join(NAMES) + "}")]
DataRoot = Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH [PATH ...]")]
Split = Literal["train", "test"]
Device = Annotated[str, tyro.conf.arg(metavar="{auto,cpu,cuda,cuda:1,mps,...}")]
Precision = Literal["auto", "bf16", "fp32"]
Backend = Literal["auto", "plain", "torch", "native", "graph", "compiled"]
Tracker = Literal["none", "tensorboard", "wandb"]
Flag = tyro.conf.FlagCreatePairsOff[bool]
Folder = Annotated[str, tyro.conf.arg(metavar="FOLDER")]
Folders = Annotated[tuple[str, ...], tyro.conf.arg(metavar="FOLDER [FOLDER ...]")]


@dataclass(frozen=True, kw_only=True)
class Command:
    """Settings of every command."""

    title: ClassVar[str] = "general"  # heading of these flags in --help; a command's own flags have none

    verbose: Annotated[Flag, tyro.conf.arg(aliases=["-v"])] = False
    """Show the traceback of an error."""
    quiet: Flag = False
    """Print no reports and no progress bars; errors are still printed."""
    plugin: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODULE|FILE.py [...]")] = ()
    """Python modules or files to import first: they register quantizers, tokenizers or priors of your own."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if hint == tuple[str, ...] and isinstance(value := getattr(self, name), str | None):
                object.__setattr__(self, name, (value,) if value else ())  # one of several is given by itself
        check_fields(self)

    def exit_code(self, result: Any) -> int:
        """Return the exit code of a command whose function returned `result`: 0, unless overridden."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Compute(Command):
    """Settings of commands that compute."""

    device: Device = "auto"
    """auto: a CUDA GPU if there is one, else the CPU. Or the name of any device that torch has here."""
    threads: Annotated[int, Range(1, MAX_THREADS)] | None = None
    """Threads that compute on a CPU. By default OMP_NUM_THREADS, or else the number of cores that are free when a
    run begins; a continued run keeps its number."""


@dataclass(frozen=True, kw_only=True)
class Overwrites(Command):
    """Settings of commands that can empty a folder first."""

    overwrite: Flag = False
    """Empty --output first, if an earlier run left something there. No other folder is ever emptied."""


@dataclass(frozen=True, kw_only=True)
class Leaves(Overwrites):
    """Settings of commands that leave a folder, and can find it and their inputs in the folder of a whole run."""

    needs: ClassVar[tuple[str, ...]] = ()  # settings that must be given, or have a folder below `run`
    uses: ClassVar[tuple[str, ...]] = ()  # settings that may be given, or found there
    place: ClassVar[str]  # the folder of the results
    is_numbered: ClassVar[bool] = True  # whether `place`-2 and so on may follow; else one, and only below `run`

    run: Folder | None = None
    """Folder of a whole run, with tokenizer/, codes/ and prior/ in it."""
    output: Folder = ""
    """Folder for the results."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run is not None:
            found = {name: find_part(self.run, name) for name in (*self.needs, *self.uses) if not getattr(self, name)}
            if not self.output and not self.is_numbered:
                found["output"] = str(Path(self.run) / self.place)
            for name in filter(found.get, found):
                object.__setattr__(self, name, found[name])
        elif getattr(self, "pretrained", None) and not self.output and not self.is_numbered:
            object.__setattr__(self, "output", str(self.home / self.place))
        for name in (name for name in self.needs if not getattr(self, name)):
            raise self.lacks(name)

    @property
    def home(self) -> Path:
        """Folder below which results go if no `output` is given."""
        return Path(self.run or Path(RUNS, getattr(self, "pretrained", None) or ""))

    def lacks(self, name: str) -> InputError:
        """Return the error for a part that was neither given nor found below `run`."""
        if self.run is None:
            return InputError(f"`{name}`: give its folder, or `run`, the folder of a whole run")
        what = f"it holds no {name}/" if Path(self.run).is_dir() else "there is no such folder"
        return InputError(f"`run` {self.run}: {what}: `codegrid {MADE_BY[name]}` makes it; or give another `{name}`")

    def check_output(self) -> None:
        """Raise `InputError` if there is no folder for the results."""
        if not self.output and not self.is_numbered:
            raise InputError("`output`: give a folder for the results, or `run`, the folder of a whole run")


@dataclass(frozen=True, kw_only=True)
class TakesPretrained(Command):
    """Settings of commands that can use the models that come with the package, in place of `tokenizer` and `prior`."""

    pretrained: Annotated[str | None, tyro.conf.arg(metavar="{" + ",".join(PRETRAINED) + "}")] = None
    """Use the tokenizer and the prior of this name, which come with the package. Results go below runs/NAME by
    default."""

    def __post_init__(self) -> None:
        if self.pretrained is not None:
            check_pretrained(self.pretrained)
            if getattr(self, "run", None) is not None:
                raise InputError(f"`pretrained` {self.pretrained} stands in for a `run`: give only one of them")
            for name in ("tokenizer", "prior"):
                if getattr(self, name, None) == ():
                    object.__setattr__(self, name, (f"{PREFIX}{self.pretrained}/{name}",))
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class ReadsData(Compute):
    """Settings of commands that read data."""

    dry_run: Flag = False
    """Print what was found and what would be computed, and stop before anything is written."""


@dataclass(frozen=True, kw_only=True)
class GivesFigures(Command):
    """Settings of commands that report figures."""

    json: Flag = False
    """Print the figures as one JSON object, and everything else to standard error."""


@dataclass(frozen=True, kw_only=True)
class UsesImages(ReadsData):
    """Settings of commands that read images."""

    title: ClassVar[str] = "image"

    dataset: Dataset | None = None
    """A folder of pictures, a file of arrays (.npz, .npy) or in Parquet; tar shards, by paths or URLs such as
    'https://host/{000..127}.tar'; a data set of the Hugging Face hub, or hf:./folder; or a name. speech: the recordings
    in --data-root, folders or Debian packages; frames: the videos in it, folders of pictures. By default the one the
    tokenizer was trained on, or mnist5k to train a tokenizer."""
    data_root: DataRoot = ()
    """Folder or file of the data set that --dataset names, of speech one or more; by default a download folder below
    $XDG_CACHE_HOME or ~/.cache. Without --dataset, the place of the tokenizer's data set; or, if that has no name, the
    folder or file of the images themselves."""
    skip_unreadable: Flag = False
    """Skip files that cannot be read, instead of stopping and naming them. Later commands that read the tokenizer's
    data set do as its training did."""
    num_workers: Annotated[int, Range(0, 256)] = 2
    """Processes that decode pictures when they do not all fit in memory."""


@dataclass(frozen=True, kw_only=True)
class HasCaptions(Command):
    """Settings of commands that read images with captions."""

    title: ClassVar[str] = "captions"

    captions: Annotated[str | None, tyro.conf.arg(metavar="FILE.csv|FILE.jsonl|COLUMN")] = None
    """Captions of the pictures in a folder: a table (.csv, .tsv, .jsonl) with a column of file names and one of texts;
    a picture may have several rows. Of a data set of the hub, the column of texts; by default one called text, caption
    or captions. The data set emoji has its own."""


@dataclass(frozen=True, kw_only=True)
class MakesViews(Command):
    """Settings of commands that can encode each image several times."""

    title: ClassVar[str] = "views"

    views: Annotated[int, Range(1, MAX_VIEWS)] = 1
    """Pictures of each image to encode: the image itself, and others made from it by --shift and --flip. They keep a
    prior from learning a small data set by heart."""
    shift: Annotated[int, Range(0, MAX_SIDE)] = 0
    """Shift the other views by up to this many pixels, repeating their edges."""
    flip: Flag = False
    """Mirror half of the other views, chosen at random."""
    view_seed: Seed = 0
    """Seed of these shifts and mirrorings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views == 1:
            for name in (name for name in ("shift", "flip", "view_seed") if getattr(self, name)):
                raise InputError(f"`{name}` makes further `views` of an image: give 2 or more of them, or leave it out")
        different = (2 * self.shift + 1) ** 2 * (1 + self.flip)
        if self.views > different:
            made = f"`shift` {self.shift} {'and `flip` make' if self.flip else 'makes'} only {different}"
            words = f"{made} different pictures of an image" if different > 1 else "all of an image would be equal"
            raise InputError(f"`views` {self.views}: {words}: give a larger `shift`, or fewer views")


@dataclass(frozen=True, kw_only=True)
class Training(ReadsData, Leaves):
    """Settings of the training loop."""

    title: ClassVar[str] = "training"
    is_numbered: ClassVar[bool] = False
    # each command gives these its own defaults
    steps: Annotated[int, Range(1, MAX_STEPS)]
    """Optimizer steps."""
    batch_size: BatchSize
    """Items per step, over all processes together."""
    lr: Annotated[float, Range(above=0)]
    """Peak learning rate."""
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: warm up to --lr, then fall to 0 along a cosine; constant: --lr at every step."""
    precision: Precision = "auto"
    """auto: bf16 if the processor has instructions for it, else fp32."""
    compile: Flag = False
    """Compile the networks first, which takes up to half a minute and makes steps a few per cent faster on a CPU."""
    accumulate: Annotated[int, Range(1, 10**6)] = 1
    """Split each batch into this many pieces, to save memory. A codebook still moves once per step."""
    seed: Seed = 0
    """Seed of everything random in training."""
    init_from: Annotated[Folder | None, tyro.conf.arg(metavar="FOLDER|hf:NAME")] = None
    """Start from the weights of this model, as far as they fit: for other data, another learning rate or a larger
    codebook. Options that are not given are copied from that model."""
    validate_every: Annotated[int, Range(1, MAX_STEPS)] | None = None
    """Steps between validations, each of which writes OUTPUT/last and OUTPUT/best. By default a tenth of --steps."""
    save_every: Annotated[int, Range(1, MAX_STEPS)] | None = None
    """Steps between two saved training states. By default one is saved about every ten seconds."""
    half: Flag = False
    """Round the weights of the finished model to float16, so that its folder takes half the space. Priors then
    learn the codes of the rounded tokenizer."""
    finish_now: Flag = False
    """Finish a stopped run early: take one more step and keep its model. SIGUSR1 does the same to a running one."""
    log_with: Tracker = "none"
    """Also log metrics and pictures with this tracker, below OUTPUT/logs; needs its package."""
    options: Annotated[dict[str, Any], tyro.conf.Suppress] = field(default_factory=dict)
    """Options of the model and its parts, by name; on the command line each is a flag."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.finish_now and self.overwrite:
            raise InputError("`finish_now` ends the run that `overwrite` would remove: give only one of them")
