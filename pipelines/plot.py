"""Draw pictures of a tokenizer, its codes and its priors.

codegrid plot --tokenizer runs/demo/tokenizer --prior runs/demo/prior --output runs/pictures
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from codegrid.limits import BatchSize, Seed
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Folder, Folders, Leaves, Split, TakesPretrained, UsesImages

Picture = Literal[
    "reconstructions", "comparison", "codes", "codebook", "histogram", "places", "grids", "curves", "samples"
]


@dataclass(frozen=True, kw_only=True)
class Plot(UsesImages, TakesPretrained, Leaves):
    """Draw reconstructions, codes, the codebook, training curves and samples. Writes a PNG for each.

    codegrid plot --tokenizer runs/demo/tokenizer --prior runs/demo/prior --output runs/pictures
    """

    needs: ClassVar[tuple[str, ...]] = ("tokenizer",)
    uses: ClassVar[tuple[str, ...]] = ("prior", "codes")
    place: ClassVar[str] = "pictures"

    run: Folder | None = None
    """Folder that holds tokenizer/, prior/ and codes/, for whichever is not given."""
    tokenizer: Folders = ()
    """Folder of a trained tokenizer, or hf:owner/name; or of several, each over the codes of the one before."""
    output: Folder = ""
    """Folder for the pictures. By default pictures/ in --run or runs/, or pictures-2/ and so on."""
    prior: Folders = ()
    """Folder of a prior trained on this tokenizer's codes, or folders of several, coarse to fine: adds samples and the
    training curves of the priors."""
    codes: Folder | None = None
    """Folder of exported codes, or an .npz or .parquet file, to count how often each entry is used. By default 2,000
    images are encoded for it."""
    beside: Folders = ()
    """Folders of other tokenizers of such images: adds a comparison of their reconstructions with those of
    --tokenizer, enlarged."""
    split: Split = "test"
    """Part of the data set to draw."""
    what: tuple[Picture, ...] = ()
    """Pictures to draw. By default all that the given parts allow."""
    projection: Literal["pca", "umap"] = "pca"
    """How the codebook is projected to two dimensions; umap needs the package umap-learn."""
    seed: Seed = 0
    """Seed of the samples and of umap."""
    batch_size: BatchSize = 256
    """Images computed at once."""


def main() -> None:
    """Run the command line."""
    run_command(Plot, "codegrid.pipelines.drawing.run:plot")


if __name__ == "__main__":
    main()
