"""Measure a tokenizer, and priors over its codes, on a data set.

codegrid evaluate --tokenizer runs/demo/tokenizer --prior runs/demo/prior --output runs/figures
"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from codegrid.limits import BatchSize, NumSamples, Seed
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Drawing, Folders, Split, UsesImages


@dataclass(frozen=True, kw_only=True)
class Evaluate(UsesImages, Drawing):
    """Measure a tokenizer, and a prior, on a data set. Leaves metrics.json, usage.png and reconstructions.png.

    codegrid evaluate --tokenizer runs/demo/tokenizer --prior runs/demo/prior --output runs/figures
    """

    tokenizer: str
    """Folder of a trained tokenizer, or hf:owner/name."""
    output: str
    """Folder for the metrics."""
    prior: Folders = ()
    """Folder of a prior trained on this tokenizer's codes, or of several, coarse to fine: adds bits per code, and a
    bound on bits per dimension."""
    split: Split = "test"
    """Which part of the data set is measured on, and is what samples are compared with."""
    features: Annotated[str, tyro.conf.arg(metavar="none|classifier|inception|MODULE:FUNCTION")] = "none"
    """Network whose features distances compare: a classifier that is trained first, Inception, or one of a function."""
    num_samples: NumSamples | None = None
    """How many images to draw from the prior, all classes in turn, and to judge by --features. By default none."""
    seed: Seed = 0
    """Sample i follows from the seed and i alone."""
    batch_size: BatchSize = 256
    """Images at once; the figures do not depend on it."""


def main() -> None:
    """Run the command line."""
    run_command(Evaluate, "codegrid.pipelines.evaluation.run:evaluate")


if __name__ == "__main__":
    main()
