"""Recordings in a folder or a Debian package: clips, their speakers, and texts and phones as far as there are any.

- Every sound file is a clip. Its speaker is the first folder in which the clips' paths differ, `SPEAKER/a.wav`; without
  such folders speakers are unknown. Folders for training and test side by side are parts, and not speakers.
- The text of `a.wav` is `a.txt`, in its folder, or in any other if its name is the only one. Lists of texts are read:
  `*.trans.txt`, with a name and a text in each line, and Festival's `txt.done.data`. Its phones are `a.lab`.
- A folder may also hold packages (.deb), which are read like folders. Hidden files, and links to folders, are left out.

Shapes: L samples of a clip.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from sys import getsizeof
from typing import Any, NamedTuple

import numpy as np

from codegrid.budget import check_memory
from codegrid.errors import InputError
from codegrid.file_names import natural_key, printable
from codegrid.files import read_plain
from codegrid.progress import progress_bar

from .debian import PACKAGE, Member, read_package
from .listing import LITTER, TEST, TRAIN, VALIDATION, part_of
from .sound import Clip
from .sound_files import ENDINGS, UnreadableSound, parse_segments, read_sound, soundfile

TEXT, PHONES, LIST, FESTIVAL = ".txt", ".lab", ".trans.txt", "txt.done.data"
SAID = re.compile(r'\(\s*(\S+)\s+"((?:[^"\\]|\\.)*)"\s*\)')  # a line of txt.done.data
# packages whose folders are named after texts, and whose files after speakers
NAMINGS = (re.compile(r"(?:^|/)gcin-voice/ogg/(?P<text>[^/]+)/(?P<speaker>[^/]+)\.ogg$"),)
AT_ONCE, BYTES_AT_ONCE = 64, 2**28  # files that are decoded at the same time, and their bytes, about
MAX_MEMBER, MAX_TEXT = 2**30, 2**20  # bytes that are read of a sound file, and of one of texts or phones


class Recordings(NamedTuple):
    """Everything that was read below a folder, by path."""

    waves: dict[PurePosixPath, np.ndarray]  # (L,) int16
    texts: dict[PurePosixPath, str]  # contents of text files
    unreadable: dict[PurePosixPath, str]  # why a sound file cannot be read


class Named(NamedTuple):
    """A clip, and its part."""

    clip: Clip
    part: str | None  # `train` or `test`; None if the folder has no parts


def read_recordings(root: Path, rate: int) -> Recordings:
    """Read all sound and all texts below a folder or in a package, at a sampling rate in samples per second.

    Raises `InputError` if a package is damaged, or memory is too small.
    """
    soundfile()  # first: nothing can be read without it
    found = Recordings({}, {}, {})
    taken = 0
    with ThreadPoolExecutor() as pool, progress_bar(desc="reading sound", unit="file", leave=False) as bar:
        for batch in _batches(_members(root)):
            sounds = [member for member in batch if _is_sound(member.path)]
            waves = list(pool.map(lambda member: _decode(root, member, rate), sounds))
            texts = {path: content.decode(errors="replace") for path, content in batch if not _is_sound(path)}
            taken += sum(wave.nbytes for wave in waves if not isinstance(wave, str))
            taken += sum(map(getsizeof, texts.values()))
            check_memory(f"the clips of {root}", taken, "give fewer, or choose a lower `sampling_rate`")
            for member, wave in zip(sounds, waves, strict=True):
                if isinstance(wave, str):
                    found.unreadable[member.path] = wave
                else:
                    found.waves[member.path] = wave
            found.texts.update(texts)
            bar.update(len(batch))
    return found


def name_clips(found: Recordings) -> list[Named]:
    """Return the clips in natural order, with their speakers, texts, phones and parts.

    Raises `InputError` if some clips are in folders of speakers, and others are not.
    """
    paths = sorted(found.waves, key=lambda path: natural_key(str(path)))
    bare = [path.with_suffix("") for path in paths]
    texts, segments = (_Beside(facts, bare) for facts in (_texts_of(found.texts), _segments_of(found.texts)))
    named = []
    for path, name, (speaker, part) in zip(paths, bare, _places(paths), strict=True):
        known = next(filter(None, (naming.search(str(path)) for naming in NAMINGS)), None)
        speaker, text = (known["speaker"], known["text"]) if known else (speaker, texts.get(name, ""))
        clip = Clip(printable(path), found.waves[path], printable(speaker), text, segments.get(name, ()))
        named.append(Named(clip, part))
    loose = [clip.name for clip, _ in named if not clip.speaker]
    if 0 < len(loose) < len(named):
        first = next(clip for clip, _ in named if clip.speaker)
        raise InputError(
            f"there are clips both loose ({loose[0]}) and in folders of speakers ({first.name}): put all into folders, "
            "or none"
        )
    return named


def _batches(members: Iterable[Member]) -> Iterator[list[Member]]:
    """Yield files in lists, each of which ends once it holds enough of them, or enough bytes."""
    batch, held = list[Member](), 0
    for member in members:
        batch.append(member)
        held += len(member.content)
        if len(batch) == AT_ONCE or held >= BYTES_AT_ONCE:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _members(root: Path) -> Iterator[Member]:
    """Yield all sound files and texts of a package, or below a folder, in natural order of its folders."""
    if not root.is_dir():
        yield from read_package(root, _most)
        return
    for folder, folders, files in os.walk(root):
        folders[:] = sorted((name for name in folders if not _is_litter(name)), key=natural_key)
        for name in sorted(files, key=natural_key):
            path = Path(folder, name)
            if name.lower().endswith(PACKAGE):
                yield from read_package(path, _most)
            elif (most := _most(PurePosixPath(name))) and path.is_file():  # and no link to what is gone
                yield Member(PurePosixPath(path.relative_to(root).as_posix()), read_plain(path, most))


def _most(path: PurePosixPath) -> int:
    """Return the most bytes of a file that are read; 0 for one that is none of a folder's recordings."""
    if _is_litter(path.name):
        return 0
    is_text = path.suffix.lower() in (TEXT, PHONES) or path.name == FESTIVAL
    return MAX_MEMBER if _is_sound(path) else MAX_TEXT * is_text


def _is_sound(path: PurePosixPath) -> bool:
    return path.suffix.lower() in ENDINGS


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in LITTER


def _decode(root: Path, member: Member, rate: int) -> np.ndarray | str:
    """Return a wave (L,) int16, or why there is none."""
    try:
        return read_sound(printable(root / member.path), member.content, rate)
    except UnreadableSound as error:
        return str(error)


def _places(paths: list[PurePosixPath]) -> list[tuple[str, str | None]]:
    """Return the speaker's folder of each clip, empty if there is none, and its part."""
    below = _without_common(paths)
    parts = [part_of(path.parts[0]) if len(path.parts) > 1 else None for path in below]
    parts = [TEST if part == VALIDATION else part for part in parts]
    has_parts = {TRAIN, TEST} <= {*parts}
    if has_parts and None in parts:
        raise InputError(f"{paths[parts.index(None)]} is beside the folders for training and test: move it into one")
    inside = [PurePosixPath(*path.parts[1:]) for path in below] if has_parts else below
    deeper = _without_common(inside)
    if any(len(path.parts) > 1 for path in deeper):  # otherwise the folder that all are in is that of the only speaker
        inside = deeper
    speakers = [path.parts[0] if len(path.parts) > 1 else "" for path in inside]
    return [(speaker, part if has_parts else None) for speaker, part in zip(speakers, parts, strict=True)]


def _without_common(paths: list[PurePosixPath]) -> list[PurePosixPath]:
    """Return paths without the folders that all of them are in."""
    shared = 0
    while paths and len({path.parts[: shared + 1] for path in paths}) == 1 and len(paths[0].parts) > shared + 1:
        shared += 1
    return [PurePosixPath(*path.parts[shared:]) for path in paths]


def _texts_of(files: dict[PurePosixPath, str]) -> dict[PurePosixPath, str]:
    """Return texts by the path of their clip, without its ending."""
    texts = {}
    for path, content in files.items():
        lines: Iterable[tuple[str, str]] = ()
        if path.name == FESTIVAL:
            lines = SAID.findall(content)
        elif path.name.endswith(LIST):
            lines = [(name, text) for line in content.splitlines() for name, _, text in [line.partition(" ")]]
        elif path.suffix.lower() == TEXT:
            texts[path.with_suffix("")] = " ".join(content.split())
        texts |= {path.parent / name: " ".join(text.split()) for name, text in lines if name not in ("", ".", "..")}
    return texts


def _segments_of(files: dict[PurePosixPath, str]) -> dict[PurePosixPath, tuple[tuple[float, str], ...]]:
    """Return the phones of label files by path without ending; a file of another form has none."""
    segments = {}
    for path, content in files.items():
        if path.suffix.lower() == PHONES:
            with suppress(ValueError):
                segments[path.with_suffix("")] = tuple(parse_segments(content))
    return segments


class _Beside:
    """Facts by path without ending: those of a clip lie beside it, or elsewhere if no other clip has its name."""

    def __init__(self, facts: Mapping[PurePosixPath, Any], clips: Iterable[PurePosixPath]) -> None:
        self.facts = facts
        of_facts, of_clips = (Counter(path.name for path in paths) for paths in (facts, clips))
        self.elsewhere = {
            path.name: fact for path, fact in facts.items() if of_facts[path.name] == of_clips[path.name] == 1
        }

    def get(self, clip: PurePosixPath, otherwise: Any) -> Any:
        """Return the fact of a clip, by its path without ending, or what stands for none."""
        return self.facts.get(clip, self.elsewhere.get(clip.name, otherwise))
