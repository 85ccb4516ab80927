"""Turn codes back into images: codes → decoder.

codegrid decode-codes --tokenizer runs/demo/tokenizer --codes runs/demo/codes --output runs/decoded
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from codegrid.limits import MAX_STEPS, BatchSize, Range
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Compute


@dataclass(frozen=True, kw_only=True)
class DecodeCodes(Compute):
    """Turn codes back into images. Leaves images.png, a sheet, and images.npz, or with --format png the folder images/.

    Where the pictures that the codes were made of are known, files.json has their names.

    codegrid decode-codes --tokenizer runs/demo/tokenizer --codes runs/demo/codes --output runs/decoded
    """

    tokenizer: str
    """Folder of the tokenizer that made the codes, or hf:owner/name."""
    codes: str
    """Folder of exported codes, or an .npz or .parquet file of plain codes and, if there are any, labels."""
    output: str
    """Folder for the images."""
    batch_size: BatchSize = 256
    """Items decoded at once."""
    format: Literal["npz", "png"] = "npz"
    """npz: images as arrays; png: a file for each image."""
    shard_size: Annotated[int, Range(1, MAX_STEPS)] = 10_000
    """Images in one .npz file; more are cut into several."""


def main() -> None:
    """Run the command line."""
    run_command(DecodeCodes, "codegrid.pipelines.generation.decoding:decode_codes")


if __name__ == "__main__":
    main()
