"""Recordings as they are, in their own lengths: a file, or all of a folder or a Debian package."""

from pathlib import Path

from codegrid.errors import InputError
from codegrid.file_names import natural_key, printable
from codegrid.files import read_plain

from .debian import PACKAGE
from .recordings import MAX_MEMBER, read_recordings
from .sound import Clip
from .sound_files import read_sound
from .speech import unreadable_error


def load_clips(place: Path, rate: int, skip_unreadable: bool = False) -> list[Clip]:
    """Read recordings, mono and at a sampling rate, in natural order of their names.

    Args:
        place: a sound file, a folder with some at any depth, or a .deb file.
        rate: samples per second.
        skip_unreadable: leave out files of a folder that cannot be read.

    Raises `InputError` if there is no sound, or a file cannot be read.
    """
    if place.is_file() and place.suffix.lower() != PACKAGE:
        return [Clip(printable(place.name), read_sound(printable(place), read_plain(place, MAX_MEMBER), rate))]
    if not place.exists():
        raise InputError(f"`input` {place}: there is no such file or folder")
    found = read_recordings(place, rate)
    if found.unreadable and not skip_unreadable:
        raise unreadable_error(found.unreadable)
    paths = sorted(found.waves, key=lambda path: natural_key(str(path)))
    if not paths:
        raise InputError(f"no sound in {place}: it needs files such as .wav, .flac and .ogg")
    return [Clip(printable(path), found.waves[path]) for path in paths]
