"""Stage 1, train a tokenizer on images: `codegrid train-tokenizer --dataset mnist5k --run runs/digits`.

Or on another tokenizer's codes: `codegrid train-tokenizer --model codes --over runs/digits/codes --run runs/triples`.
Or on sound: `codegrid train-tokenizer --model wave --dataset speech --data-root RECORDINGS --run runs/voices`.
"""

from dataclasses import dataclass, fields
from typing import Annotated, ClassVar

import tyro

from codegrid.data.names import NAMES, SOUNDS, find_data, kind_of
from codegrid.errors import InputError
from codegrid.limits import MAX_LENGTH, MAX_SIDE, MAX_STEPS, BatchSize, Range
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Flag, Folder, Training, UsesImages
from codegrid.registry import NameOf


@dataclass(frozen=True, kw_only=True)
class TrainTokenizer(UsesImages, Training):
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
    "images": (*OF_DATA, "image_size", "shuffle_buffer", "flip", "shift", "crop"),
    "sound": (*OF_DATA, "sampling_rate", "window"),
}


def main() -> None:
    """Run the command line."""
    run_command(TrainTokenizer, "codegrid.pipelines.training.tokenizer:train_tokenizer")


if __name__ == "__main__":
    main()
