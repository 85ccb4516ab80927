"""Measure a tokenizer and priors, or how far two sets of pictures are apart: `codegrid evaluate --run runs/demo`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from codegrid.errors import InputError
from codegrid.limits import BatchSize, NumSamples, Seed
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Drawing, Folder, Folders, GivesFigures, Leaves, Split, UsesImages


@dataclass(frozen=True, kw_only=True)
class Evaluate(UsesImages, Drawing, Leaves, GivesFigures):
    """Measure a tokenizer, and a prior, on a data set. Leaves metrics.json, usage.png and reconstructions.png.

    codegrid evaluate --run runs/demo

    Or measure how far pictures are from others. Leaves metrics.json.

    codegrid evaluate --images runs/demo/samples --against PICTURES --features inception
    """

    needs: ClassVar[tuple[str, ...]] = ("tokenizer",)
    uses: ClassVar[tuple[str, ...]] = ("prior",)
    place: ClassVar[str] = "figures"

    run: Folder | None = None
    """Folder that holds tokenizer/ and perhaps prior/ (or prior-0/, prior-1/, ...): used for those that are not
    given."""
    tokenizer: Folder = ""
    """Folder of a trained tokenizer, or hf:owner/name."""
    output: Folder = ""
    """Folder for the metrics. By default figures/ in --run or runs/, or figures-2/ and so on."""
    images: Folder | None = None
    """Pictures to compare with those of --against, without any model: a folder, an .npz file, or the folder that
    sample or decode-codes left."""
    against: Folder | None = None
    """The pictures that they are compared with. The classifier of --features learns the class folders of these."""
    prior: Folders = ()
    """Folder of a prior trained on this tokenizer's codes, or of several, coarse to fine: adds bits per code, and a
    bound on bits per dimension."""
    split: Split = "test"
    """Which part of the data set is measured on, and is what samples are compared with."""
    features: Annotated[str, tyro.conf.arg(metavar="none|classifier|inception|MODULE:FUNCTION")] = "none"
    """Network by whose features images are compared: a classifier that is trained first, Inception, or the network
    that a function of yours returns, in a module or a file, FILE.py:FUNCTION."""
    num_samples: NumSamples | None = None
    """How many images to draw from the prior, all classes in turn, to be judged by --features. By default none."""
    seed: Seed = 0
    """Sample i follows from the seed and i alone."""
    batch_size: BatchSize = 256
    """Images at once; the figures do not depend on it."""

    def __post_init__(self) -> None:
        if self.images is not None or self.against is not None:
            object.__setattr__(self, "needs", ())
            if self.images is None or self.against is None or self.tokenizer or self.prior:
                raise InputError("`images` and `against` go together, and without a `tokenizer` or `prior`")
        super().__post_init__()


def main() -> None:
    """Run the command line."""
    run_command(Evaluate, "codegrid.pipelines.evaluation.run:evaluate")


if __name__ == "__main__":
    main()
