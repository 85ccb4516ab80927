"""Repeat recordings in another voice: `codegrid convert --tokenizer T --input RECORDINGS --speaker ann --output O`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from codegrid.errors import InputError
from codegrid.limits import BatchSize, Seed
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Flag, Folder, Leaves, ReadsData


@dataclass(frozen=True, kw_only=True)
class Convert(ReadsData, Leaves):
    """Convert recordings to the voice of a speaker that the tokenizer has learnt.

    Writes a .wav file for each recording, of the recording's length, into the folder sounds/; the names of the
    recordings, in order, in files.json; and sounds.png, spectrograms of some recordings above what they became. It need
    not be known who speaks in the recordings.

    codegrid convert --tokenizer runs/voices/tokenizer --input RECORDINGS --speaker ann --output runs/ann
    """

    needs: ClassVar[tuple[str, ...]] = ("tokenizer",)
    place: ClassVar[str] = "converted"

    run: Folder | None = None
    """Folder of a whole run, for its tokenizer/ if --tokenizer is not given."""
    tokenizer: Folder = ""
    """Folder of a tokenizer of sound that was trained on several speakers, or hf:owner/name."""
    input: Annotated[str, tyro.conf.arg(metavar="FILE|FOLDER")] = ""
    """Recordings: a file, a folder with files at any depth, or a Debian package. Long ones are computed in windows."""
    speaker: str = ""
    """Name of the speaker to be heard."""
    output: Folder = ""
    """Folder for the sound. By default converted/ in --run or runs/, or converted-2/ and so on."""
    seed: Seed = 0
    """Seed of a decoder that draws; what it draws for recording i depends only on the seed and on i."""
    batch_size: BatchSize = 16
    """Recordings that a decoder that draws computes at once."""
    skip_unreadable: Flag = False
    """Skip files that cannot be read, instead of stopping and naming them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, what in (("input", "a recording, or a folder of them"), ("speaker", "the name of a speaker")):
            if not getattr(self, name):
                raise InputError(f"`{name}`: give {what}")


def main() -> None:
    """Run the command line."""
    run_command(Convert, "codegrid.pipelines.generation.voices:convert")


if __name__ == "__main__":
    main()
