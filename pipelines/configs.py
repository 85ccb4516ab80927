"""The settings of every script: frozen dataclasses, from which the command lines are made."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

DATASETS = ("mnist5k", "mnist", "fashion-mnist", "cifar10", "imagefolder", "npz", "hf:NAME")
Dataset = Annotated[str, tyro.conf.arg(metavar="{" + ",".join(DATASETS) + "}")]  # hf:NAME stands for many
Split = Literal["train", "test"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "bf16", "fp32"]
QuantizerName = Literal["ema", "gradient", "clustered", "clustered-gradient"]
Distance = Literal["euclidean", "cosine"]
Anchors = Literal["random", "closest", "probabilistic"]
LrSchedule = Literal["cosine", "constant"]
MemoryFormat = Literal["channels-last", "contiguous"]
OptimizerKind = Literal["fused", "plain"]
Tracker = Literal[
    "none", "tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio"
]
Picture = Literal["reconstructions", "codes", "codebook", "histogram", "places", "curves", "samples"]
Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What every script takes."""

    verbose: Annotated[Flag, tyro.conf.arg(aliases=["-v"])] = False
    """Show where an error came from."""


@dataclass(frozen=True)
class TrainTokenizer(Command):
    """Stage 1: train a VQ-VAE on images. Leaves a model folder.

    python -m pipelines.train_tokenizer --dataset mnist5k --output runs/digits/tokenizer
    """

    output: str
    """Folder for the model. The same command again continues a run that was stopped."""
    dataset: Dataset = "mnist5k"
    """imagefolder: any folder of pictures; npz: arr_0 uint8 NHWC or NHW, arr_1 labels; hf:NAME: of the Hugging Face
    hub, or hf:./folder."""
    data_root: str | None = None
    """Folder (or .npz file) of the data set; by default a download folder below ~/.cache."""
    image_size: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SIZE|H W")] = ()
    """Resize and centre-crop to this: one number, or height and width. By default the images' own size."""
    steps: int = 10_000
    """Optimizer steps."""
    batch_size: int = 128
    """Images a step, over all processes together."""
    lr: float = 2e-3
    """Highest learning rate."""
    lr_schedule: LrSchedule = "cosine"
    """cosine: a warm-up to --lr, then down to 0 along a cosine; constant: --lr throughout."""
    quantizer: QuantizerName = "ema"
    """How the codebook is learnt: by averages, or by gradient; clustered also moves rarely used entries to latents."""
    num_embeddings: int = 512
    """Codebook entries K."""
    embedding_dim: int = 64
    """Size of a codebook entry."""
    hidden_channels: int = 128
    """Width of encoder and decoder."""
    downsampling: int = 4
    """Image size over code grid size: a power of two."""
    commitment_cost: float = 0.25
    """Weight β of the commitment loss."""
    decay: float = 0.99
    """Decay γ of the codebook's moving averages."""
    revival_threshold: float | None = None
    """Entries below this share of uniform use move to random latents; 0: never. None: 0.3, or 0 for clustered."""
    distance: Distance = "euclidean"
    """What nearest means; cosine only chooses, the entries stay as they are."""
    kmeans_steps: int = 0
    """First steps in which the codebook is set to the k-means of the batch's latents."""
    anchors: Anchors | None = None
    """Latents that a clustered codebook moves to: of a pool, the closest, or drawn by distance. None: probabilistic."""
    anchor_once: Flag = False
    """Let a clustered codebook move unused entries in the first step only."""
    flip: Flag = False
    """Mirror every second training image, drawn by lot."""
    shift: int = 0
    """Move each training image by up to this many pixels; its edges are repeated."""
    crop: float = 1.0
    """Train on random windows of at least this share of each side, enlarged; 1: on whole images."""
    precision: Precision = "auto"
    """auto: bf16 where the processor computes in it, fp32 elsewhere."""
    memory_format: MemoryFormat = "channels-last"
    """How images and features lie in memory."""
    optimizer: OptimizerKind = "fused"
    """Adam over all weights at once, or one after the other."""
    compile: Flag = False
    """Compile the networks first: half a minute for steps that are a few per cent faster on a CPU."""
    accumulate: int = 1
    """Pieces that a step's batch is worked through in, for less memory. The codebook still moves once a step."""
    seed: int = 0
    """Everything random follows from it."""
    device: Device = "auto"
    """auto: cuda where there is a GPU."""
    num_workers: int = 2
    """Processes that decode pictures that do not fit in memory."""
    save_every: int | None = None
    """Steps between two saved training states. None: as many as take ten seconds."""
    log_with: Tracker = "none"
    """Also log figures and pictures with this tracker, below OUTPUT/logs or where it keeps them; needs its package."""


@dataclass(frozen=True)
class ExportCodes(Command):
    """Encode a data set with a trained tokenizer. Leaves a code dataset.

    python -m pipelines.export_codes --tokenizer runs/digits/tokenizer --dataset mnist5k --output runs/digits/codes
    """

    tokenizer: str
    """Folder of a trained tokenizer, or hf:owner/name."""
    output: str
    """Folder for the codes. The same command again finishes an export that was stopped."""
    dataset: Dataset = "mnist5k"
    """The images to encode; they are brought to the tokenizer's size and channels."""
    data_root: str | None = None
    """Folder (or .npz file) of the data set; by default a download folder below ~/.cache."""
    split: Split = "train"
    """Which part of the data set."""
    format: Literal["codegrid", "npz", "parquet"] = "codegrid"
    """codegrid: checked shards and a manifest, what train_prior reads; npz: the plain arrays `codes` and `labels`;
    parquet: the columns `codes` and `label`, for Hugging Face `datasets`."""
    batch_size: int = 256
    """Images encoded at once."""
    device: Device = "auto"
    """auto: cuda where there is a GPU."""
    num_workers: int = 2
    """Processes that decode pictures that do not fit in memory."""


@dataclass(frozen=True)
class TrainPrior(Command):
    """Stage 2: train a gated PixelCNN on exported codes. Leaves a model folder.

    python -m pipelines.train_prior --codes runs/digits/codes --output runs/digits/prior
    """

    codes: str
    """Folder of exported codes."""
    output: str
    """Folder for the model. The same command again continues a run that was stopped."""
    validation_codes: str | None = None
    """Folder of codes to validate on. By default every tenth grid of each class of --codes is held out for it."""
    steps: int = 20_000
    """Optimizer steps."""
    batch_size: int = 128
    """Grids a step, over all processes together."""
    lr: float = 1e-3
    """Highest learning rate."""
    lr_schedule: LrSchedule = "cosine"
    """cosine: a warm-up to --lr, then down to 0 along a cosine; constant: --lr throughout."""
    channels: int = 64
    """Width of the network."""
    num_layers: int = 15
    """Gated layers."""
    dropout: float = 0.1
    """Share of the input codes hidden in training: more for small data sets."""
    label_dropout: float = 0.1
    """Share of the labels hidden in training, so that the prior also learns grids of no class: guidance needs it."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights. It is what is kept."""
    keep: Literal["best", "last"] = "best"
    """Which average: that with the fewest bits per code on held-out grids, or the last; its samples can be better."""
    max_norm: float = 1.0
    """Longest gradient; a longer one is cut to it."""
    unconditional: Flag = False
    """Ignore the labels of the codes. Without this the prior is conditioned on them, where there are any."""
    precision: Precision = "auto"
    """auto: bf16 where the processor computes in it, fp32 elsewhere."""
    memory_format: MemoryFormat = "channels-last"
    """How features lie in memory."""
    optimizer: OptimizerKind = "fused"
    """Adam over all weights at once, or one after the other."""
    compile: Flag = False
    """Compile the networks first: half a minute for steps that are a few per cent faster on a CPU."""
    accumulate: int = 1
    """Pieces that a step's batch is worked through in, for less memory."""
    seed: int = 0
    """Everything random follows from it."""
    device: Device = "auto"
    """auto: cuda where there is a GPU."""
    save_every: int | None = None
    """Steps between two saved training states. None: as many as take ten seconds."""
    log_with: Tracker = "none"
    """Also log figures and pictures with this tracker, below OUTPUT/logs or where it keeps them; needs its package."""


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
    """Folder of exported codes, or an .npz file, in which uses are counted. By default 2,000 images are encoded."""
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
