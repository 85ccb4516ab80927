"""Encode a data set with a trained tokenizer: images → codes.

codegrid export-codes --tokenizer runs/digits/tokenizer --dataset mnist5k --output runs/digits/codes
"""

from dataclasses import dataclass
from typing import Literal

from codegrid.limits import BatchSize
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Split, UsesImages


@dataclass(frozen=True, kw_only=True)
class ExportCodes(UsesImages):
    """Encode a data set with a trained tokenizer. Leaves a code dataset.

    codegrid export-codes --tokenizer runs/digits/tokenizer --dataset mnist5k --output runs/digits/codes
    """

    tokenizer: str
    """Folder of a trained tokenizer, or hf:owner/name."""
    output: str
    """Folder for the codes. The same command again finishes an export that was stopped."""
    split: Literal[Split, "all"] = "train"
    """Which part of the data set; all: both. Images are brought to the tokenizer's size and channels."""
    format: Literal["codegrid", "npz", "parquet"] = "codegrid"
    """codegrid: checked shards and a manifest, what train-prior reads; npz: plain arrays of codes and labels;
    parquet: columns of codes and labels, for Hugging Face `datasets`."""
    batch_size: BatchSize = 256
    """Images encoded at once."""


def main() -> None:
    """Run the command line."""
    run_command(ExportCodes, "codegrid.pipelines.generation.encoding:export_codes")


if __name__ == "__main__":
    main()
