"""Turn a compressed file into images again: `codegrid decompress --run runs/digits --file digits.cgz`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from codegrid.limits import BatchSize
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Compute, Folder, Folders, Leaves, TakesPretrained


@dataclass(frozen=True, kw_only=True)
class Decompress(Compute, TakesPretrained, Leaves):
    """Turn a file that compress wrote into images again, with the same models. Needs codegrid[compress].

    codegrid decompress --run runs/demo --file digits.cgz

    Writes the folder pictures/, with a PNG file for each image, under the names of the original files if they had any.
    """

    needs: ClassVar[tuple[str, ...]] = ("tokenizer", "prior")
    place: ClassVar[str] = "decompressed"
    is_numbered: ClassVar[bool] = False

    file: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """The compressed file."""
    run: Folder | None = None
    """Folder that holds tokenizer/ and prior/ (or prior-0/, prior-1/, ...), for whichever is not given."""
    tokenizer: Folders = ()
    """Folder of the tokenizer that the file was made with, or hf:owner/name; or of several, each over the codes of the
    one before."""
    prior: Folders = ()
    """Folder of the prior that the file was made with, or folders of several, coarse to fine."""
    output: Folder = ""
    """Folder for the images. By default decompressed/ in --run."""
    format: Literal["png", "codes"] = "png"
    """png: a picture for each image; codes: a code dataset, as export-codes writes it."""
    batch_size: BatchSize | None = None
    """Images computed at once. By default as many as when the file was made."""


def main() -> None:
    """Run the command line."""
    run_command(Decompress, "codegrid.pipelines.compression.decompressing:decompress_file")


if __name__ == "__main__":
    main()
