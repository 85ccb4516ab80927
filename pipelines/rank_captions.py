"""Rank captions for pictures: `codegrid rank-captions --run runs/emoji --images PICTURES --captions "a car" ...`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from codegrid.errors import InputError
from codegrid.limits import BatchSize, Seed
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Folder, Folders, Leaves, ReadsData


@dataclass(frozen=True, kw_only=True)
class RankCaptions(ReadsData, Leaves):
    """Rank captions for each picture of a folder, by how likely the prior finds its codes under each of them.

    Writes ranking.json: for each picture all captions, the likeliest first, each with −ln p of the codes, or a bound on
    it. The prior must be one that reads texts.

    codegrid rank-captions --run runs/emoji --images PICTURES --captions "a red heart" "a green car"
    """

    needs: ClassVar[tuple[str, ...]] = ("tokenizer", "prior")
    place: ClassVar[str] = "ranking"

    run: Folder | None = None
    """Folder that holds tokenizer/ and prior/ (or prior-0/, prior-1/, ...), for whichever is not given."""
    tokenizer: Folders = ()
    """Folder of a trained tokenizer, or hf:owner/name; or of several, each over the codes of the one before."""
    prior: Folders = ()
    """Folder of a prior trained on this tokenizer's codes, or hf:owner/name, or several of these, coarse to fine."""
    output: Folder = ""
    """Folder for the ranking. By default ranking/ in --run or runs/, or ranking-2/ and so on."""
    images: Folder = ""
    """Folder of pictures."""
    captions: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT [TEXT ...]")] = ()
    """Texts to rank, each in quotation marks."""
    seed: Seed = 0
    """Seed of the noise by which a prior that only has a bound estimates it; a picture's is the same for all texts."""
    batch_size: BatchSize = 128
    """Pictures computed at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, what in (("images", "a folder of pictures"), ("captions", "the texts to rank")):
            if not getattr(self, name):
                raise InputError(f"`{name}`: give {what}")


def main() -> None:
    """Run the command line."""
    run_command(RankCaptions, "codegrid.pipelines.generation.ranked_pictures:rank_captions")


if __name__ == "__main__":
    main()
