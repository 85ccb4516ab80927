"""Say which stage of a run is at fault, and what to try.

codegrid doctor --run runs/demo
"""

from dataclasses import dataclass
from typing import Any

from codegrid.limits import NumSamples, Seed
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Compute, Dataset, Flag, Folder, Folders, GivesFigures, Overwrites

SOUND = "Nothing found."  # the verdict on a run without findings and marks


@dataclass(frozen=True, kw_only=True)
class Doctor(Compute, Overwrites, GivesFigures):
    """Say in words which stage of a run is at fault, and what to try; mark every figure that is not as usual.

    Exits with 0 whatever it finds; with --strict only where it looked and nothing is found or marked, else with 1.

    codegrid doctor --run runs/demo
    """

    run: Folder | None = None
    """Folder that holds tokenizer/, prior/ (or prior-0/, prior-1/, ...), codes/ and perhaps codes_test/, as the demo
    leaves it."""
    tokenizer: Folder | None = None
    """Folder of a trained tokenizer, in the place of tokenizer/."""
    prior: Folders = ()
    """Folder of a prior, in the place of prior/, or of several, coarse to fine."""
    codes: Folder | None = None
    """Folder of the codes that the prior learnt, in the place of codes/."""
    validation_codes: Folder | None = None
    """Folder of codes that it did not learn, in the place of codes_test/. Without it, some of --codes."""
    dataset: Dataset | None = None
    """The images, for the decoder: a path, hf:NAME or a name. By default those that the tokenizer was trained on, where
    they are still there."""
    data_root: Folder | None = None
    """Folder or file of the data set that --dataset names; by default a download folder below ~/.cache."""
    skip_unreadable: Flag = False
    """Leave out pictures that cannot be read, instead of stopping with their names."""
    num_samples: NumSamples | None = 256
    """How many samples to draw from the prior, to be compared with as many held-out grids; None: draw none."""
    seed: Seed = 0
    """Seed of the samples: sample i follows from it and i alone."""
    strict: Flag = False
    """Exit with code 1 where anything is found, or marked as not usual, or nothing could be looked at."""
    output: Folder | None = None
    """Folder for doctor.json, which holds all of it for programs. By default nothing is written."""

    def exit_code(self, result: Any) -> int:
        """Return 1 where a strict doctor is not content with its report, as `doctor` returns it; else 0."""
        return int(self.strict and result["verdict"] != SOUND)


def main() -> None:
    """Run the command line."""
    run_command(Doctor, "codegrid.pipelines.diagnosis.run:doctor")


if __name__ == "__main__":
    main()
