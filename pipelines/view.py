"""A page in the browser: encode images, edit their codes, sample, complete.

codegrid view --run runs/demo
"""

from dataclasses import dataclass
from typing import Annotated

from codegrid.errors import InputError
from codegrid.limits import Range
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Compute, Folder, Folders


@dataclass(frozen=True, kw_only=True)
class View(Compute):
    """A page in the browser: encode images, edit their codes, sample, complete. Needs no network.

    codegrid view --run runs/demo
    """

    run: Folder | None = None
    """Folder that holds tokenizer/ and prior/ (or prior-0/, prior-1/, ...)."""
    tokenizer: Folder | None = None
    """Folder of a trained tokenizer, in the place of tokenizer/."""
    prior: Folders = ()
    """Folder of a prior, in the place of prior/, or of several, coarse to fine."""
    host: str = "127.0.0.1"
    """Address to listen on. By default only this machine can open the page; 0.0.0.0: everyone on its network."""
    port: Annotated[int, Range(1, 65535)] = 7860
    """Port to listen on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run is None and not (self.tokenizer and self.prior):
            raise InputError("`run`: give the folder of a run, or a `tokenizer` and a `prior`")


def main() -> None:
    """Run the command line."""
    run_command(View, "codegrid.pipelines.viewer.run:view")


if __name__ == "__main__":
    main()
