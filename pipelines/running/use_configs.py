"""The settings of the scripts that use a trained tokenizer or prior, and of the demo."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import tyro

from .configs import Command, Dataset, Device, Flag, Split

Picture = Literal["reconstructions", "codes", "codebook", "histogram", "places", "curves", "samples"]


@dataclass(frozen=True, kw_only=True)
class Drawing(Command):
    """How codes are drawn, for every script that draws some."""

    temperature: float = 1.0
    """Below 1 for likelier samples, 0 for the likeliest code at each site."""
    top_k: int | None = None
    """Draw among so many codes only, the likeliest at each site. None: among all."""
    top_p: float = 1.0
    """Draw among the fewest codes that have this probability together. 1: among all."""
    guidance_scale: float = 1.0
    """Above 1 for more of what makes the class; for priors trained with --label-dropout. 1: no guidance."""

    @property
    def controls(self) -> dict[str, Any]:
        """These settings alone: the arguments of `stage2_prior.Controls`."""
        return {field.name: getattr(self, field.name) for field in fields(Drawing) if field.name != "verbose"}


@dataclass(frozen=True)
class Sample(Drawing):
    """Draw new codes from the prior and decode them.

    Leaves samples.png and samples.npz (or several such files, or with --format codegrid a code dataset); with
    --complete completions.png and completions.npz.

    python -m pipelines.sample --tokenizer runs/demo/tokenizer --prior runs/demo/prior --output runs/sevens --labels 7
    """

    tokenizer: str
    """Folder of a trained tokenizer, or hf:owner/name."""
    prior: str
    """Folder of a prior trained on this tokenizer's codes, or hf:owner/name."""
    output: str
    """Folder for the samples. The same command again goes on where a run was stopped."""
    num_samples: int | None = None
    """How many images: by default one for each of several labels, otherwise 100; with --complete 4 for each picture."""
    labels: tuple[str, ...] = ()
    """Numbers or names of classes, or none: one for each sample, or one for all. By default all classes in turn. With
    --complete one for each picture, and by default none."""
    complete: str | None = None
    """Folder of pictures to complete: their upper rows of codes are kept, the rest is drawn."""
    keep_rows: int | None = None
    """Rows of codes that --complete keeps; None: half of them."""
    seed: int = 0
    """Sample i follows from the seed and i alone, whatever the batch size and the number of processes."""
    batch_size: int = 128
    """Images drawn at once, in each process."""
    format: Literal["npz", "codegrid"] = "npz"
    """npz: images; codegrid: the codes alone, as a code dataset that decode_codes and train_prior read."""
    shard_size: int = 10_000
    """Images in one .npz file; more are cut into several."""
    compile: Flag = False
    """Compile the prior first, on a GPU into CUDA graphs: takes up to a minute, and on a CPU samples no faster."""
    device: Device = "auto"
    """auto: cuda where there is a GPU."""


@dataclass(frozen=True)
class DecodeCodes(Command):
    """Turn codes back into images. Leaves images.png and images.npz.

    python -m pipelines.decode_codes --tokenizer runs/demo/tokenizer --codes runs/demo/codes --output runs/decoded
    """

    tokenizer: str
    """Folder of the tokenizer that made the codes, or hf:owner/name."""
    codes: str
    """Folder of exported codes, or an .npz file with `codes` (n, h, w) and, if there are any, `labels` (n,), or a
    .parquet file with such columns."""
    output: str
    """Folder for the images."""
    batch_size: int = 256
    """Grids decoded at once."""
    shard_size: int = 10_000
    """Images in one .npz file; more are cut into several."""
    device: Device = "auto"
    """auto: cuda where there is a GPU."""


@dataclass(frozen=True)
class Evaluate(Drawing):
    """Measure a tokenizer, and a prior, on a data set. Leaves metrics.json, usage.png and reconstructions.png.

    python -m pipelines.evaluate --tokenizer runs/demo/tokenizer --prior runs/demo/prior --output runs/figures
    """

    tokenizer: str
    """Folder of a trained tokenizer, or hf:owner/name."""
    output: str
    """Folder for the figures."""
    prior: str | None = None
    """Folder of a prior trained on this tokenizer's codes: adds bits per code, and a bound on bits per dimension."""
    dataset: Dataset = "mnist5k"
    """The images; they are brought to the tokenizer's size and channels."""
    data_root: str | None = None
    """Folder (or .npz file) of the data set; by default a download folder below ~/.cache."""
    split: Split = "test"
    """Which part of the data set is measured on, and is what samples are compared with."""
    features: Annotated[str, tyro.conf.arg(metavar="none|classifier|inception|MODULE:FUNCTION")] = "none"
    """What distances compare images by: a classifier that is trained first, Inception, or what a function returns."""
    num_samples: int | None = None
    """How many images to draw from the prior, all classes in turn, and to judge by --features. None: no samples."""
    seed: int = 0
    """Sample i follows from the seed and i alone."""
    batch_size: int = 256
    """Images at once; the figures do not depend on it."""
    device: Device = "auto"
    """auto: cuda where there is a GPU."""
    num_workers: int = 2
    """Processes that decode pictures that do not fit in memory."""


@dataclass(frozen=True)
class Plot(Command):
    """Draw reconstructions, codes, the codebook, training curves and samples. Leaves a PNG for each.

    python -m pipelines.plot --tokenizer runs/demo/tokenizer --prior runs/demo/prior --output runs/pictures
    """

    tokenizer: str
    """Folder of a trained tokenizer, or hf:owner/name."""
    output: str
    """Folder for the pictures."""
    prior: str | None = None
    """Folder of a prior trained on this tokenizer's codes: adds samples and its training curves."""
    codes: str | None = None
    """Folder of exported codes, or an .npz or .parquet file, in which uses are counted. By default 2,000 images are
    encoded."""
    dataset: Dataset = "mnist5k"
    """The images; they are brought to the tokenizer's size and channels."""
    data_root: str | None = None
    """Folder (or .npz file) of the data set; by default a download folder below ~/.cache."""
    split: Split = "test"
    """Which part of the data set."""
    what: tuple[Picture, ...] = ()
    """Which pictures. By default all that the given parts allow."""
    projection: Literal["pca", "umap"] = "pca"
    """How the codebook is brought into the plane; umap needs the package umap-learn."""
    seed: int = 0
    """The samples follow from it."""
    batch_size: int = 256
    """Images at once."""
    device: Device = "auto"
    """auto: cuda where there is a GPU."""
    num_workers: int = 2
    """Processes that decode pictures that do not fit in memory."""


@dataclass(frozen=True)
class Doctor(Command):
    """Say in words which stage of a run is at fault, and what to try. Exits with 0 whatever it finds.

    python -m pipelines.doctor --run runs/demo
    """

    run: str | None = None
    """Folder that holds tokenizer/, prior/, codes/ and perhaps codes_test/, as the demo leaves it."""
    tokenizer: str | None = None
    """Folder of a trained tokenizer, in the place of tokenizer/."""
    prior: str | None = None
    """Folder of a prior, in the place of prior/."""
    codes: str | None = None
    """Folder of the codes that the prior learnt, in the place of codes/."""
    validation_codes: str | None = None
    """Folder of codes that it did not learn, in the place of codes_test/. Without it, every tenth grid of --codes."""
    dataset: Dataset | None = None
    """The images, for the decoder. None: mnist5k where the tokenizer learnt it, otherwise none."""
    data_root: str | None = None
    """Folder (or .npz file) of the data set; by default a download folder below ~/.cache."""
    num_samples: int | None = 256
    """How many grids to draw from the prior, to be compared with as many held-out ones. None: none."""
    seed: int = 0
    """Of the samples: sample i follows from the seed and i alone."""
    output: str | None = None
    """Folder for doctor.json, the same for programs. None: nothing is written."""
    device: Device = "auto"
    """auto: cuda where there is a GPU."""


@dataclass(frozen=True)
class Demo(Command):
    """Both stages on 5,000 real handwritten digits, in minutes: tokenizer, codes, prior, samples, figures.

    python -m pipelines.demo
    """

    output: str = "runs/demo"
    """Folder for tokenizer/, codes/, prior/, samples/ and the figures."""


@dataclass(frozen=True)
class View(Command):
    """A page in the browser: encode images, edit their codes, sample, complete. Needs no network.

    python -m pipelines.view --run runs/demo
    """

    run: str
    """Folder that holds tokenizer/ and prior/."""
    host: str = "127.0.0.1"
    """Address to listen on. By default nobody but this machine can open the page; 0.0.0.0: everybody in its network."""
    port: int = 7860
    """Port to listen on."""
    device: Device = "auto"
    """auto: cuda where there is a GPU."""
