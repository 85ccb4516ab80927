"""Stage 1, train a tokenizer on images: `codegrid train-tokenizer --dataset mnist5k --run runs/digits`.

Or on another tokenizer's codes: `codegrid train-tokenizer --model codes --over runs/digits/codes --run runs/triples`.
"""

from dataclasses import dataclass, fields
from typing import Annotated, ClassVar

import tyro

from codegrid.errors import InputError
from codegrid.limits import MAX_SIDE, MAX_STEPS, BatchSize, Range
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Flag, Folder, Training, UsesImages
from codegrid.registry import NameOf


@dataclass(frozen=True, kw_only=True)
class TrainTokenizer(UsesImages, Training):
    """Stage 1: train a tokenizer on images. Writes a model folder.

    codegrid train-tokenizer --dataset mnist5k --output runs/digits/tokenizer

    Or train one on another tokenizer's codes, which turns all codes of an image into a few.

    codegrid train-tokenizer --model codes --over runs/digits/codes --output runs/triples/tokenizer
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
        if self.over is None and self.validation_codes is not None:
            raise InputError("`validation_codes` is for a tokenizer over codes: give `over`, or leave it out")
        if self.over is not None:
            defaults = {item.name: item.default for item in fields(self)}
            for name in OF_IMAGES:
                if getattr(self, name) != defaults[name]:
                    raise InputError(f"`{name}` is for images, but `over` trains on codes: leave one of them out")


OF_IMAGES = ("dataset", "data_root", "image_size", "shuffle_buffer", "flip", "shift", "crop", "skip_unreadable")


def main() -> None:
    """Run the command line."""
    run_command(TrainTokenizer, "codegrid.pipelines.training.tokenizer:train_tokenizer")


if __name__ == "__main__":
    main()
