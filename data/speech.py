"""The data set `speech`: windows of recordings, held out by what is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath

from codegrid.errors import InputError
from codegrid.file_names import natural_key
from codegrid.tensors import digest_of

from .debian import PACKAGE
from .listing import TEST
from .recordings import Named, Recordings, name_clips, read_recordings
from .sound import Clip, SoundDataset
from .sound_files import is_silent
from .splits import split_indices

RATE, WINDOW = 16_000, 8192  # by default
NAMED = 10  # unreadable files named in a message


def load_speech(
    root: Path | None,
    split: str = "train",
    length: int | None = None,
    rate: float | None = None,
    shortest: int = 1,
    skip_unreadable: bool = False,
) -> SoundDataset:
    """Read the clips below a folder or in a package, mono, and cut one part of them into windows.

    A folder without parts holds out a tenth of its texts, whoever says them: all clips of a text are in one part. A
    clip without a text has its file's name in place of it.

    Args:
        root: a folder, or a .deb file; see `codegrid.data.recordings`.
        split: `train`, `test`, or `all` for both.
        length: samples of a window, by default 8,192.
        rate: samples per second that all clips are brought to, by default 16,000.
        shortest: samples; shorter clips are left out, and so are silent ones.
        skip_unreadable: leave out files that cannot be read, too.

    Raises `InputError` if there is no sound, or a file cannot be read.
    """
    if root is None or not (root.is_dir() or (root.is_file() and root.suffix.lower() == PACKAGE)):
        given = "is not given" if root is None else f"{root} is neither"
        raise InputError(f"`data_root` {given}: speech needs a folder of sound files, or a Debian package (.deb)")
    rate = rate or RATE
    found = _read_once(root, round(rate), _stamp(root))
    if found.unreadable and not skip_unreadable:
        raise unreadable(found.unreadable)
    named = name_clips(found)
    if not named:
        raise InputError(f"no sound in {root}: it needs files such as .wav, .flac and .ogg")
    speakers = sorted({clip.speaker for clip, _ in named} - {""}, key=natural_key)
    kept, left_out = _without_bad(named, shortest)
    left_out |= {"unreadable": Counter(map(str, found.unreadable))} if found.unreadable else {}
    chosen = _choose_part(kept, split)
    if not chosen:
        raise InputError(f"the {split} part of {root} holds no sound: give more than its {len(named):,} clips")
    data = SoundDataset(chosen, length or WINDOW, rate, speakers)
    minutes = sum(len(clip.wave) for clip in chosen) / rate / 60
    notes = [f"{len(chosen):,} clips of {minutes:,.1f} minutes at {rate:,g} Hz"]
    for what, count in (("texts", _count(chosen, "text")), ("phones", _count(chosen, "segments"))):
        notes += [f"{count:,} clips with {what}"] * (count > 0)
    data.found = replace(data.found, name=str(root), part=split, left_out=left_out, notes=tuple(notes))
    return data


@lru_cache(maxsize=1)  # both parts are read by the same command
def _read_once(root: Path, rate: int, stamp: str) -> Recordings:
    return read_recordings(root, rate)


def _stamp(root: Path) -> str:
    """Return a digest that changes with the names, sizes and times of the files."""
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    found = [(str(path), status.st_size, status.st_mtime_ns) for path in files for status in [path.stat()]]
    return digest_of([list(each) for each in found])


def _without_bad(named: Sequence[Named], shortest: int) -> tuple[list[Named], dict[str, Counter[str]]]:
    """Return the clips that are long and loud enough, and the names of the others by reason."""
    kept, left_out = [], dict[str, Counter[str]]()
    for each in named:
        wave = each.clip.wave
        reason = "silent" if is_silent(wave) else "shorter than a code" if len(wave) < shortest else ""
        if reason:
            left_out.setdefault(reason, Counter())[each.clip.name] += 1
        else:
            kept.append(each)
    return kept, left_out


def _choose_part(named: Sequence[Named], split: str) -> list[Clip]:
    """Return the clips of one part."""
    if split == "all":
        return [clip for clip, _ in named]
    if any(part is not None for _, part in named):
        return [clip for clip, part in named if (part == TEST) == (split == TEST)]
    said = [_key_of(clip) for clip, _ in named]
    texts = sorted(set(said), key=natural_key)
    part = {texts[number] for number in split_indices(None, len(texts), split)}
    return [clip for (clip, _), text in zip(named, said, strict=True) if text in part]


def _key_of(clip: Clip) -> str:
    """Return what is said, or, if that is unknown, the name of the file."""
    return clip.text.casefold() or PurePosixPath(clip.name).stem


def _count(clips: Sequence[Clip], what: str) -> int:
    return sum(bool(getattr(clip, what)) for clip in clips)


def unreadable(found: dict[PurePosixPath, str]) -> InputError:
    """Return one error about all unreadable files: the first with its reason, the others by name."""
    first, *others = found
    more = ", ".join(map(str, others[:NAMED])) + ", …" * (len(others) > NAMED)
    more = f"; {len(others):,} more cannot be read: {more}" if others else ""
    return InputError(f"{found[first]}, or leave such files out with `skip_unreadable`{more}")
