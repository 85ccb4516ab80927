"""Open a page in the browser to encode, edit, sample and complete: `codegrid view --run runs/demo`."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from codegrid.errors import InputError
from codegrid.limits import Range
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Compute, DataRoot, Dataset, Folder, Folders, TakesPretrained


@dataclass(frozen=True, kw_only=True)
class View(TakesPretrained, Compute):
    """Serve a page for the browser: encode images or sound, edit the codes, sample, complete. Needs no network.

    codegrid view --run runs/demo

    codegrid view --pretrained digits
    """

    run: Folder | None = None
    """Folder that holds tokenizer/ and, for samples, prior/ (or prior-0/, prior-1/, ...); or hf:owner/name."""
    tokenizer: Folders = ()
    """Folder of a trained tokenizer, or hf:owner/name, instead of tokenizer/; or of several, each over the codes of the
    one before. A tokenizer alone is enough to encode and edit."""
    prior: Folders = ()
    """Folder of a prior, or hf:owner/name, instead of prior/, or several of these, coarse to fine."""
    dataset: Dataset | None = None
    """Images or recordings to pick from: a folder of your own, for example. By default those that the tokenizer was
    trained on, if they are on this machine."""
    data_root: DataRoot = ()
    """Folder or file of the data set, if it is not where the tokenizer's training found it."""
    host: str = "127.0.0.1"
    """Address to listen on. By default only this machine can open the page; with 0.0.0.0 everyone on its network."""
    port: Annotated[int, Range(1, 65535)] = 7860
    """Port to listen on."""
    trusted_hosts: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = ()
    """Host names under which the page may also be opened, such as that of a proxy in front. Others are refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run is None and not self.tokenizer:
            words = "give the folder of a run, or a `tokenizer`, with or without a `prior`, or `pretrained`"
            raise InputError(f"`run`: {words}")


def main() -> None:
    """Run the command line."""
    run_command(View, "codegrid.pipelines.viewer.run:view")


if __name__ == "__main__":
    main()
