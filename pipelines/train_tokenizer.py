"""Stage 1, train a tokenizer on images: `codegrid train-tokenizer --dataset mnist5k --run runs/digits`.

Or on another tokenizer's codes: `codegrid train-tokenizer --model codes --over runs/digits/codes --run runs/triples`.
Or on sound: `codegrid train-tokenizer --model wave --dataset speech --data-root RECORDINGS --run runs/voices`.
"""

from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Literal

import tyro

from codegrid.data.names import NAMES, SOUNDS, find_data, kind_of
from codegrid.errors import InputError
from codegrid.limits import MAX_LENGTH, MAX_SIDE, MAX_STEPS, MAX_WIDTH, BatchSize, Range
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Command, Flag, Folder, Training, UsesImages
from codegrid.registry import NameOf

MAX_WARMUP = 1000  # steps of a discriminator alone, by default


@dataclass(frozen=True, kw_only=True)
class Sharpens(Command):
    """Settings of a perceptual distance and of a discriminator, which make reconstructions sharp."""

    title: ClassVar[str] = "sharp pictures"

    perceptual_weight: Annotated[float, Range(0)] = 0.0
    """Weight of the perceptual distance of reconstructions. 0: none."""
    perceptual: Annotated[str, tyro.conf.arg(metavar="lite0|MODULE:FUNCTION")] = "lite0"
    """Network that measures this distance: lite0, a small one trained on ImageNet, or a network of yours, which a
    function in a module or a file returns (FILE.py:FUNCTION). It is given two batches of colour images in [-1, 1], as
    lpips.LPIPS is."""
    adversarial_weight: Annotated[float, Range(0)] = 0.0
    """Weight of the adversarial term: reconstructions should pass for real images with a discriminator, which learns to
    tell them apart (VQ-GAN). 0: no discriminator."""
    adversarial_loss: Literal["hinge", "non-saturating"] = "hinge"
    """Loss of the discriminator, and that of the tokenizer which goes with it."""
    discriminator_start: Annotated[int, Range(0, MAX_STEPS)] | None = None
    """Step at which the discriminator begins to learn. By default a quarter of --steps."""
    discriminator_warmup: Annotated[int, Range(0, MAX_STEPS)] | None = None
    """Steps in which the discriminator learns alone, and then as many in which --adversarial-weight grows from 0. By
    default a tenth of the steps after --discriminator-start, and at most 1,000."""
    discriminator_lr: Annotated[float, Range(above=0)] = 2e-4
    """Peak learning rate of the discriminator."""
    discriminator_channels: Annotated[int, Range(1, MAX_WIDTH)] = 64
    """Channels of the discriminator's first layer; each following one has twice as many, up to eight times."""
    discriminator_layers: Annotated[int, Range(1, 12)] | None = None
    """Layers of the discriminator: it judges patches of 16, 34 or 70 pixels with 1, 2 or 3 of them. By default 3, or
    fewer for small images: at least 4×4 patches must be left."""
    fixed_weight: Flag = False
    """Use --adversarial-weight as it is. Otherwise it is multiplied by a number λ at each step, which makes both sides
    pull equally hard at the decoder's last layer."""
    max_adaptive_weight: Annotated[float, Range(above=0)] = 1.0
    """Largest λ: without a limit, it explodes when a discriminator that is sure of itself has hardly any gradient."""
    lecam_weight: Annotated[float, Range(0)] = 0.0
    """Weight of the LeCAM penalty, which keeps the discriminator of a small data set from being too sure. 0: none."""
    diff_augment: tuple[Literal["color", "translation", "cutout"], ...] = ()
    """Change at random all images that the discriminator sees, real and reconstructed ones alike (DiffAugment), so that
    it does not learn a small data set by heart: their colours, their place, and a window that is cut out. By default
    nothing."""

    def check_sharpness(self) -> None:
        """Raise `InputError` if a setting belongs to a term whose weight is 0."""
        weights = ("perceptual_weight", "adversarial_weight")
        defaults = {item.name: item.default for item in fields(self)}
        for name in OF_SHARPNESS:
            needs = weights[name != "perceptual"]
            if name not in weights and not getattr(self, needs) and getattr(self, name) != defaults[name]:
                raise InputError(f"`{name}` needs `{needs}`: give it a weight above 0, or leave it out")
        if self.fixed_weight and self.max_adaptive_weight != Sharpens.max_adaptive_weight:
            raise InputError("`max_adaptive_weight`: with `fixed_weight` there is no λ to limit: leave one of them out")

    def discriminator_steps(self, steps: int) -> tuple[int, int]:
        """Return the step at which the discriminator begins, and for how many steps it learns alone, out of `steps`.

        Raises `InputError` if it would never have an effect.
        """
        start = steps // 4 if self.discriminator_start is None else self.discriminator_start
        if start >= steps:
            raise InputError(f"`discriminator_start` {start:,}: there are only {steps:,} `steps`: let it begin earlier")
        warmup = min(MAX_WARMUP, (steps - start) // 10)
        warmup = warmup if self.discriminator_warmup is None else self.discriminator_warmup
        if start + warmup >= steps:
            raise InputError(
                f"`discriminator_warmup` {warmup:,}: from step {start:,} on, it would last until the end of the "
                f"{steps:,} `steps`: give fewer"
            )
        return start, warmup


OF_SHARPNESS = tuple(name for name in Sharpens.__annotations__ if name != "title")


@dataclass(frozen=True, kw_only=True)
class TrainTokenizer(Sharpens, UsesImages, Training):
    """Stage 1: train a tokenizer on images. Writes a model folder.

    codegrid train-tokenizer --dataset mnist5k --output runs/digits/tokenizer

    Or train one on another tokenizer's codes, which turns all codes of an image into a few.

    codegrid train-tokenizer --model codes --over runs/digits/codes --output runs/triples/tokenizer

    Or train one on recordings, of which each folder is a speaker.

    codegrid train-tokenizer --model wave --dataset speech --data-root RECORDINGS --output runs/voices/tokenizer
    """

    place: ClassVar[str] = "tokenizer"

    run: Folder | None = None
    """Folder of a whole run; the model goes into its tokenizer/, where the other commands find it by --run."""
    output: Folder = ""
    """Folder for the model. Run the same command again to continue a stopped run."""
    model: Annotated[str, NameOf("tokenizer")] = "vqvae"
    """Kind of tokenizer."""
    quantizer: Annotated[str, NameOf("quantizer")] = "ema"
    """How latents become codes, and how the codebook learns."""
    over: Folder | None = None
    """Train on these codes instead of images, with --model codes: a folder of codes that export-codes wrote."""
    validation_codes: Folder | None = None
    """With --over: a folder of codes to validate on. By default a tenth of --over is held out, or more if there are
    few."""
    image_size: Annotated[tuple[int, ...], Range(1, MAX_SIDE), tyro.conf.arg(metavar="SIZE|HEIGHT WIDTH")] = ()
    """Resize and centre-crop to this size: one number, or height and width. By default the images' own size."""
    sampling_rate: Annotated[int, Range(1000, 192_000)] | None = None
    """Samples per second that sound is brought to. By default 16,000."""
    window: Annotated[int, Range(1, MAX_LENGTH)] | None = None
    """Samples of the windows that recordings are cut into. By default 8,192."""
    steps: Annotated[int, Range(1, MAX_STEPS)] = 10_000
    """Optimizer steps."""
    batch_size: BatchSize = 128
    """Images per step, over all processes together."""
    lr: Annotated[float, Range(above=0)] = 2e-3
    """Peak learning rate."""
    shuffle_buffer: Annotated[int, Range(1, 10**9)] = 10_000
    """Number of images that are shuffled together, for tar shards that do not fit in memory."""
    flip: Flag = False
    """Mirror half of the training images, chosen at random."""
    shift: Annotated[int, Range(0, MAX_SIDE)] = 0
    """Shift each training image at random by up to this many pixels, repeating its edges."""
    crop: Annotated[float, Range(above=0, high=1)] = 1.0
    """Train on random windows of at least this share of each side, enlarged to full size; 1: on whole images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_sharpness()
        if self.adversarial_weight:
            self.discriminator_steps(self.steps)
        if self.over is None and self.validation_codes is not None:
            raise InputError("`validation_codes` is for a tokenizer over codes: give `over`, or leave it out")
        if self.over is not None:
            for kind in ONLY_FOR:
                for name in self.given_of(kind):
                    raise InputError(f"`{name}` is for {kind}, but `over` trains on codes: leave one of them out")

    def given_of(self, kind: str) -> list[str]:
        """Return the settings that are only for images, or only for sound, and are not left at their defaults."""
        defaults = {item.name: item.default for item in fields(self)}
        return [name for name in ONLY_FOR[kind] if getattr(self, name) != defaults[name]]

    def check_data(self, kind: str) -> None:
        """Raise `InputError` if the data set is not of this kind, `images` or `sound`, or a setting is for another."""
        dataset, _ = find_data(self.dataset, self.data_root) if self.dataset or self.data_root else (NAMES[0], None)
        if KINDS[kind_of(dataset)] != kind:
            remedy = "choose another `model`, or another `dataset`"
            if not self.dataset and not self.data_root:
                remedy = f"give `dataset` {SOUNDS[0]}, and its place as `data_root`"
            raise InputError(
                f"`model` {self.model} learns {kind}, and {dataset} holds {KINDS[kind_of(dataset)]}: {remedy}"
            )
        for other in ONLY_FOR.keys() - {kind}:
            for name in set(self.given_of(other)) - {*ONLY_FOR[kind]}:
                raise InputError(f"`{name}` is for {other}, but a {self.model} tokenizer learns {kind}: leave it out")


KINDS = {"image": "images", "sound": "sound"}
OF_DATA = ("dataset", "data_root", "skip_unreadable")
ONLY_FOR = {
    "images": (*OF_DATA, "image_size", "shuffle_buffer", "flip", "shift", "crop", *OF_SHARPNESS),
    "sound": (*OF_DATA, "sampling_rate", "window"),
}


def main() -> None:
    """Run the command line."""
    run_command(TrainTokenizer, "codegrid.pipelines.training.tokenizer:train_tokenizer")


if __name__ == "__main__":
    main()
