"""The data set `speech`: windows of recordings, held out by what is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath

from codegrid.errors import InputError
from codegrid.file_names import natural_key, printable
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
    roots: Sequence[Path],
    split: str = "train",
    length: int | None = None,
    rate: float | None = None,
    shortest: int = 1,
    skip_unreadable: bool = False,
) -> SoundDataset:
    """Read the clips below folders and in packages, mono, and cut one part of them into windows.

    A folder without parts holds out a tenth of its texts, whoever says them: all clips of a text are in one part. A
    clip without a text has its file's name in place of it.

    Args:
        roots: folders and .deb files; see `codegrid.data.recordings`. Of several, one without folders of speakers is a
            speaker, and speakers of the same name are the same.
        split: `train`, `test`, or `all` for both.
        length: samples of a window, by default 8,192.
        rate: samples per second that all clips are brought to, by default 16,000.
        shortest: samples; shorter clips are left out, and so are silent ones.
        skip_unreadable: leave out files that cannot be read, too.

    Raises `InputError` if there is no sound, or a file cannot be read.
    """
    wrong = [f"{root} is neither" for root in roots if not _is_read(root)]
    for given in wrong if roots else ["is not given"]:
        raise InputError(f"`data_root` {given}: speech needs a folder of sound files, or a Debian package (.deb)")
    name, rate = " ".join(map(str, roots)), rate or RATE
    read = _read_once(tuple(roots), round(rate), tuple(map(_stamp, roots)))
    named, unreadable = _joined(roots, read)
    if unreadable and not skip_unreadable:
        raise unreadable_error(unreadable)
    if not named:
        raise InputError(f"no sound in {name}: it needs files such as .wav, .flac and .ogg")
    speakers = sorted({clip.speaker for clip, _ in named} - {""}, key=natural_key)
    kept, left_out = _without_bad(named, shortest)
    left_out |= {"unreadable": Counter(map(str, unreadable))} if unreadable else {}
    chosen = _choose_part(kept, split)
    if not chosen:
        raise InputError(f"the {split} part of {name} holds no sound: give more than its {len(named):,} clips")
    data = SoundDataset(chosen, length or WINDOW, rate, speakers)
    minutes = sum(len(clip.wave) for clip in chosen) / rate / 60
    notes = [f"{len(chosen):,} clips of {minutes:,.1f} minutes at {rate:,g} Hz"]
    for what, count in (("texts", _count(chosen, "text")), ("phones", _count(chosen, "segments"))):
        notes += [f"{count:,} clips with {what}"] * (count > 0)
    data.found = replace(data.found, name=name, part=split, left_out=left_out, notes=tuple(notes))
    return data


@lru_cache(maxsize=1)  # both parts are read by the same command
def _read_once(roots: tuple[Path, ...], rate: int, stamps: tuple[str, ...]) -> list[Recordings]:
    return [read_recordings(root, rate) for root in roots]


def _is_read(root: Path) -> bool:
    return root.is_dir() or (root.is_file() and root.suffix.lower() == PACKAGE)


def _joined(roots: Sequence[Path], read: Sequence[Recordings]) -> tuple[list[Named], dict[PurePosixPath, str]]:
    """Return all clips, and why files cannot be read. Names of clips in several places begin with that of their place.

    Raises `InputError` if one of several places holds no sound.
    """
    if len(roots) == 1:
        return name_clips(read[0]), read[0].unreadable
    joined, unreadable = list[Named](), dict[PurePosixPath, str]()
    for root, place, found in zip(roots, _names_of(roots), read, strict=True):
        if not found.waves and not found.unreadable:
            raise InputError(f"no sound in {root}: it needs files such as .wav, .flac and .ogg")
        unreadable |= {place / path: why for path, why in found.unreadable.items()}
        for clip, part in name_clips(found):
            clip = clip._replace(name=f"{place}/{clip.name}", speaker=clip.speaker or place)
            joined.append(Named(clip, part))
    return joined, unreadable


def _names_of(roots: Sequence[Path]) -> list[str]:
    """Return a printable name for each place, its folder's or package's; equal ones are numbered."""
    names = [root.absolute().name.partition("_")[0] if root.is_file() else root.absolute().name for root in roots]
    printed = [printable(name) for name in names]
    before = [printed[:number].count(name) for number, name in enumerate(printed)]
    return [f"{name}-{count + 1}" if count else name for name, count in zip(printed, before, strict=True)]


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
    """Return the clips of one part; of those that are in no folder of a part, a tenth of the texts is held out."""
    if split == "all":
        return [clip for clip, _ in named]
    texts = sorted({_key_of(clip) for clip, part in named if part is None}, key=natural_key)
    chosen = {texts[number] for number in split_indices(None, len(texts), split)} if texts else set()
    return [
        clip for clip, part in named if (_key_of(clip) in chosen if part is None else (part == TEST) == (split == TEST))
    ]


def _key_of(clip: Clip) -> str:
    """Return what is said, or, if that is unknown, the name of the file."""
    return clip.text.casefold() or PurePosixPath(clip.name).stem


def _count(clips: Sequence[Clip], what: str) -> int:
    return sum(bool(getattr(clip, what)) for clip in clips)


def unreadable_error(found: dict[PurePosixPath, str]) -> InputError:
    """Return one error about all unreadable files: the first with its reason, the others by name."""
    first, *others = found
    more = ", ".join(map(str, others[:NAMED])) + ", …" * (len(others) > NAMED)
    more = f"; {len(others):,} more cannot be read: {more}" if others else ""
    return InputError(f"{found[first]}, or leave such files out with `skip_unreadable`{more}")
