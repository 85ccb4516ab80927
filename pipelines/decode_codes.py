"""Turn codes back into images: `codegrid decode-codes --run runs/demo --output runs/decoded`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from codegrid.limits import MAX_STEPS, MAX_VIEWS, BatchSize, Range
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Folder, Folders, Leaves, ReadsData, TakesPretrained


@dataclass(frozen=True, kw_only=True)
class DecodeCodes(ReadsData, TakesPretrained, Leaves):
    """Turn codes back into images. Writes a sheet, images.png, and images.npz, or with --format png the folder images/.
    Codes of sound become .wav files in the folder sounds/, with spectrograms of some in sounds.png.

    If it is known which pictures the codes were made from, files.json has their names.

    codegrid decode-codes --tokenizer runs/demo/tokenizer --codes runs/demo/codes --output runs/decoded
    """

    needs: ClassVar[tuple[str, ...]] = ("tokenizer", "codes")
    place: ClassVar[str] = "decoded"

    run: Folder | None = None
    """Folder that holds tokenizer/ and codes/, for whichever is not given."""
    tokenizer: Folders = ()
    """Folder of the tokenizer that made the codes, or hf:owner/name; or of several, each over the codes of the one
    before."""
    codes: Folder = ""
    """Folder of exported codes, or an .npz or .parquet file of plain codes and, if there are any, labels."""
    output: Folder = ""
    """Folder for the images. By default decoded/ in --run or runs/, or decoded-2/ and so on."""
    view: Annotated[int, Range(0, MAX_VIEWS - 1)] = 0
    """Number of the view to decode, if the codes are of several of each image; 0 is the image as it is."""
    batch_size: BatchSize = 256
    """Images decoded at once."""
    format: Literal["npz", "png", "wav"] | None = None
    """npz: images as arrays; png: a file for each image; wav: a file for each window of sound. By default npz, and wav
    for sound."""
    shard_size: Annotated[int, Range(1, MAX_STEPS)] = 10_000
    """Images per .npz file; more are split over several files."""


def main() -> None:
    """Run the command line."""
    run_command(DecodeCodes, "codegrid.pipelines.generation.decoding:decode_codes")


if __name__ == "__main__":
    main()
