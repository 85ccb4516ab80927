"""Encode a data set with a trained tokenizer: `codegrid export-codes --run runs/digits`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from codegrid.limits import BatchSize
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.places import PARTS
from codegrid.pipelines.running.settings import (
    Folder,
    Folders,
    HasCaptions,
    Leaves,
    MakesViews,
    Split,
    TakesPretrained,
    UsesImages,
)


@dataclass(frozen=True, kw_only=True)
class ExportCodes(UsesImages, HasCaptions, MakesViews, TakesPretrained, Leaves):
    """Encode a data set with a trained tokenizer. Writes a code dataset.

    codegrid export-codes --tokenizer runs/digits/tokenizer --dataset mnist5k --output runs/digits/codes
    """

    needs: ClassVar[tuple[str, ...]] = ("tokenizer",)
    place: ClassVar[str] = PARTS["codes"]
    is_numbered: ClassVar[bool] = False

    run: Folder | None = None
    """Folder that holds tokenizer/; the codes go into its codes/, or with --split test into codes_test/."""
    tokenizer: Folders = ()
    """Folder of a trained tokenizer, or hf:owner/name; or of several, each over the codes of the one before."""
    output: Folder = ""
    """Folder for the codes. Run the same command again to finish a stopped export."""
    split: Literal[Split, "all"] = "train"
    """Part of the data set to encode; all: both parts. Images are converted to the tokenizer's size and channels."""
    format: Literal["codegrid", "npz", "parquet"] = "codegrid"
    """codegrid: shards with checksums, and a manifest; npz: plain arrays of codes and labels; parquet: columns of
    codes and labels, for Hugging Face `datasets`. train-prior reads all three."""
    batch_size: BatchSize = 256
    """Images encoded at once."""

    def __post_init__(self) -> None:
        if (self.run is not None or self.pretrained) and not self.output and self.split == "test":
            object.__setattr__(self, "output", str(self.home / PARTS["validation_codes"]))
        super().__post_init__()


def main() -> None:
    """Run the command line."""
    run_command(ExportCodes, "codegrid.pipelines.generation.encoding:export_codes")


if __name__ == "__main__":
    main()
