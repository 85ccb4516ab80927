"""Say which stage of a run is at fault, and what to try.

codegrid doctor --run runs/demo
"""

from dataclasses import dataclass
from typing import Any

from codegrid.limits import NumSamples, Seed
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import (
    Compute,
    DataRoot,
    Dataset,
    Flag,
    Folder,
    Folders,
    GivesFigures,
    Overwrites,
    TakesPretrained,
)

SOUND = "Nothing found."  # the verdict on a run without findings or marks


@dataclass(frozen=True, kw_only=True)
class Doctor(Compute, TakesPretrained, Overwrites, GivesFigures):
    """Say in words which stage of a run is at fault, and what to try; mark every unusual figure.

    The exit code is 0 whatever it finds. With --strict it is 0 only if something was checked and nothing was found or
    marked, else 1.

    codegrid doctor --run runs/demo
    """

    run: Folder | None = None
    """Folder that holds tokenizer/, prior/ (or prior-0/, prior-1/, ...), codes/ and perhaps codes_test/, as the demo
    leaves it."""
    tokenizer: Folders = ()
    """Folder of a trained tokenizer, instead of tokenizer/; or of several, each over the codes of the one before."""
    prior: Folders = ()
    """Folder of a prior, instead of prior/, or folders of several, coarse to fine."""
    codes: Folder | None = None
    """Folder of the codes that the prior was trained on, instead of codes/."""
    validation_codes: Folder | None = None
    """Folder of codes that the prior was not trained on, instead of codes_test/. Without it, some of --codes."""
    dataset: Dataset | None = None
    """Images to check the decoder with: a path, hf:NAME or a name. By default those that the tokenizer was trained on,
    if they are still there."""
    data_root: DataRoot = ()
    """Folder or file of the data set that --dataset names; by default a download folder below
    $XDG_CACHE_HOME or ~/.cache."""
    skip_unreadable: Flag = False
    """Skip pictures that cannot be read, instead of stopping and naming them."""
    num_samples: NumSamples | None = 256
    """Number of samples to draw from the prior and compare with as many held-out grids; None: draw none."""
    seed: Seed = 0
    """Seed of the samples: sample i depends only on it and on i."""
    strict: Flag = False
    """Exit with code 1 if anything is found or marked as unusual, or if nothing could be checked."""
    output: Folder | None = None
    """Folder for doctor.json, which holds the whole report for programs. By default nothing is written."""

    def exit_code(self, result: Any) -> int:
        """Return 1 if --strict is set and the report that `doctor` returned has findings or marks; else 0."""
        return int(self.strict and result["verdict"] != SOUND)


def main() -> None:
    """Run the command line."""
    run_command(Doctor, "codegrid.pipelines.diagnosis.run:doctor")


if __name__ == "__main__":
    main()
