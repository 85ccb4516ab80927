"""Compress images, or exported codes, into a file: `codegrid compress --run runs/digits --output digits.cgz`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

from codegrid.errors import InputError
from codegrid.limits import BatchSize
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Flag, Folder, Folders, Leaves, Split, TakesPretrained, UsesImages


@dataclass(frozen=True, kw_only=True)
class Compress(UsesImages, TakesPretrained, Leaves):
    """Compress images into one file, with the prior as the model of an entropy coder. Needs codegrid[compress].

    codegrid compress --run runs/demo --dataset mnist5k --output digits.cgz

    The file holds the codes of the images; the same models turn it into pictures again, with the error of the
    tokenizer. With --lossless it also holds what that misses.
    """

    needs: ClassVar[tuple[str, ...]] = ("tokenizer", "prior")
    place: ClassVar[str] = "images.cgz"
    is_numbered: ClassVar[bool] = False

    run: Folder | None = None
    """Folder that holds tokenizer/ and prior/ (or prior-0/, prior-1/, ...), for whichever is not given."""
    tokenizer: Folders = ()
    """Folder of a trained tokenizer, or hf:owner/name; or of several, each over the codes of the one before."""
    prior: Folders = ()
    """Folder of a prior trained on this tokenizer's codes, or folders of several, coarse to fine."""
    codes: Folder | None = None
    """Compress these codes instead of images: a folder of exported codes, or an .npz or .parquet file."""
    output: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """The compressed file. By default images.cgz in --run."""
    split: Literal[Split, "all"] = "all"
    """Part of the data set to compress; all: every image."""
    lossless: Flag = False
    """Also keep what the tokenizer misses, so that the images come back bit for bit, in their own sizes. They
    must be 8-bit pictures, grey or RGB."""
    backend: Literal["auto", "native", "torch", "plain"] = "auto"
    """How the priors compute. native: in C++ on the CPU, with the same bits on every machine; torch, plain: the file
    can only be decompressed on this kind of machine; auto: native if the priors have it, else torch."""
    batch_size: BatchSize = 256
    """Images computed at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dataset", "data_root", "lossless", "split") if self.codes else ():
            if getattr(self, name) not in ("", (), False, None, "all"):
                raise InputError(f"`{name}` goes with images, but `codes` are given: leave one of them out")


def main() -> None:
    """Run the command line."""
    run_command(Compress, "codegrid.pipelines.compression.compressing:compress_data")


if __name__ == "__main__":
    main()
