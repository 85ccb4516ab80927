"""Say which stage of a run is at fault, and what to try.

codegrid doctor --run runs/demo
"""

from dataclasses import dataclass

from codegrid.limits import NumSamples, Seed
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Compute, Dataset, Flag, Folder, Folders, GivesFigures, Overwrites


@dataclass(frozen=True, kw_only=True)
class Doctor(Compute, Overwrites, GivesFigures):
    """Say in words which stage of a run is at fault, and what to try. Exits with 0 whatever it finds.

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
    output: Folder | None = None
    """Folder for doctor.json, which holds all of it for programs. By default nothing is written."""


def main() -> None:
    """Run the command line."""
    run_command(Doctor, "codegrid.pipelines.diagnosis.run:doctor")


if __name__ == "__main__":
    main()
