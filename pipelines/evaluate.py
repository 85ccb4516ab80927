"""Measure a tokenizer and priors, or how far two sets of pictures are apart: `codegrid evaluate --run runs/demo`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from codegrid.errors import InputError
from codegrid.limits import BatchSize, NumSamples, Seed
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.drawing import Rejecting
from codegrid.pipelines.running.settings import (
    Flag,
    Folder,
    Folders,
    GivesFigures,
    HasCaptions,
    Leaves,
    Split,
    TakesPretrained,
    UsesImages,
)


@dataclass(frozen=True, kw_only=True)
class Evaluate(UsesImages, HasCaptions, Rejecting, TakesPretrained, Leaves, GivesFigures):
    """Measure a tokenizer and a prior on a data set. Writes metrics.json, usage.png and reconstructions.png.

    codegrid evaluate --run runs/demo

    Or measure how far two sets of pictures are apart. Writes metrics.json.

    codegrid evaluate --images runs/demo/samples --against PICTURES --features inception
    """

    needs: ClassVar[tuple[str, ...]] = ("tokenizer",)
    uses: ClassVar[tuple[str, ...]] = ("prior",)
    place: ClassVar[str] = "figures"

    run: Folder | None = None
    """Folder that holds tokenizer/ and perhaps prior/ (or prior-0/, prior-1/, ...), for whichever is not given."""
    tokenizer: Folders = ()
    """Folder of a trained tokenizer, or hf:owner/name; or of several, each over the codes of the one before."""
    output: Folder = ""
    """Folder for the metrics. By default figures/ in --run or runs/, or figures-2/ and so on."""
    images: Folder | None = None
    """Pictures to compare with those of --against, without any model: a folder, an .npz file, or a folder that
    sample or decode-codes wrote."""
    against: Folder | None = None
    """Pictures that --images are compared with. --features classifier is trained on their class folders."""
    prior: Folders = ()
    """Folder of a prior trained on this tokenizer's codes, or folders of several, coarse to fine: adds bits per code,
    and a bound on bits per dimension."""
    split: Split = "test"
    """Part of the data set to measure on, and to compare samples with."""
    features: Annotated[str, tyro.conf.arg(metavar="none|classifier|inception|lite0|MODULE:FUNCTION")] = "none"
    """Network whose features are used to compare images: a classifier that is trained first, and kept in
    OUTPUT/classifier; Inception; lite0, a small one trained on ImageNet, which needs no download; or a network of
    yours, which a function in a module or a file returns (FILE.py:FUNCTION)."""
    num_samples: NumSamples | None = None
    """Number of images to draw from the prior, all classes in turn or for captions of the data set, and judge by
    --features. By default none."""
    skip_likelihood: Flag = False
    """Leave out what the prior's likelihood or error gives, such as bits per code: to judge samples again, for example
    at another guidance scale."""
    phonemes: Flag = False
    """For a tokenizer of sound, also measure how often a code tells the phoneme. Each code stands for the phoneme that
    it occurs with most often in the training part; recordings need label files (.lab)."""
    seed: Seed = 0
    """Sample i depends only on the seed and on i."""
    batch_size: BatchSize = 256
    """Images computed at once; the results do not depend on it."""

    def __post_init__(self) -> None:
        if self.images is not None or self.against is not None:
            object.__setattr__(self, "needs", ())
            object.__setattr__(self, "uses", ())
            if self.images is None or self.against is None or self.tokenizer or self.prior or self.pretrained:
                raise InputError("`images` and `against`: give both, and no models")
        super().__post_init__()
        if self.reject_with is not None and self.num_samples is None:
            raise InputError("`reject_with` needs `num_samples`: give the number of samples to draw")


def main() -> None:
    """Run the command line."""
    run_command(Evaluate, "codegrid.pipelines.evaluation.run:evaluate")


if __name__ == "__main__":
    main()
