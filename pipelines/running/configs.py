"""The settings of the scripts that train and export: frozen dataclasses, from which the command lines are made.

Those of the scripts that use what was trained are in `use_configs.py`.
"""

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
