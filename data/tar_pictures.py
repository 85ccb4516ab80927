"""The pictures of tar shards: their bytes, their classes, and which of them are held out.

Shapes: n pictures.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from codegrid.errors import InputError
from codegrid.file_names import natural_key, printable
from codegrid.limits import MAX_CLASSES

from .images import evenly_spaced
from .listing import TEST, TRAIN, VALIDATION, part_of
from .pictures import Unreadable
from .splits import SHARE, split_indices
from .tar_places import path_of
from .tar_shards import Shard

MAX_BYTES = 2**31  # of a picture, encoded
HELD_OUT = 10_000  # pictures that are enough to measure on, if whole shards are held out


class TarPicture:
    """One picture of a shard, read when it is opened; `str()` names it in messages."""

    def __init__(self, shard: Shard, name: str, offset: int, size: int) -> None:
        self.shard, self.name, self.offset, self.size = shard, name, offset, size

    def __str__(self) -> str:
        return printable(f"{self.shard.name}/{self.name}")

    def open(self) -> io.BytesIO:
        """Return the encoded bytes of the picture. Raises `InputError` if the shard is gone or has changed."""
        if self.size > MAX_BYTES:
            raise Unreadable(f"{self} has {self.size:,} bytes, at most {MAX_BYTES:,} are read: remove it")
        with self.shard.open() as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.size))


class TarPictures:
    """Pictures of shards, in the order of the shards."""

    def __init__(
        self, shards: Sequence[Shard], shard_of: np.ndarray, names: list[str], offsets: np.ndarray, sizes: np.ndarray
    ) -> None:
        self.shards, self.shard_of, self.names, self.offsets, self.sizes = shards, shard_of, names, offsets, sizes

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> TarPicture:
        shard = self.shards[self.shard_of[index]]
        return TarPicture(shard, self.names[index], int(self.offsets[index]), int(self.sizes[index]))

    def take(self, numbers: np.ndarray) -> TarPictures:
        """Return the pictures with these indices."""
        names = [self.names[number] for number in numbers.tolist()]
        return TarPictures(self.shards, self.shard_of[numbers], names, self.offsets[numbers], self.sizes[numbers])


def number_classes(pictures: TarPictures, texts: list[str]) -> tuple[np.ndarray | None, list[str]]:
    """Return labels (n,) int64 and the names of the classes; None and no names if no picture has a class.

    If all texts (n) are numbers from 0, they are the labels; otherwise they are names, numbered in natural order.

    Raises `InputError` if only some pictures have a class, or there are too many classes.
    """
    if not any(texts):
        return None, []
    if not all(texts):
        number = texts.index("")
        raise InputError(f"{pictures[number]} has no class (a member .cls), but others do: add it, or leave all out")
    if all(text.isdecimal() and text.isascii() and len(text) < 10 for text in set(texts)):
        labels = np.array(texts, dtype=np.int64)
        if labels.max() >= MAX_CLASSES:
            number = int(labels.argmax())
            raise InputError(f"{pictures[number]}: class {labels.max()}: classes must be below {MAX_CLASSES:,}")
        return labels, [str(number) for number in range(labels.max() + 1)]
    names = sorted(set(texts), key=natural_key)
    if len(names) > MAX_CLASSES:
        raise InputError(f"the shards hold {len(names):,} classes: at most {MAX_CLASSES:,} are read")
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers[text] for text in texts]), list(map(printable, names))


def choose_part(
    pictures: TarPictures, labels: np.ndarray | None, split: str
) -> tuple[np.ndarray, Counter[str], tuple[str, ...]]:
    """Return the indices of a part's pictures, the names of shards that are in no part, and notes on the split.

    If the names of shards or their folders name parts, these are the parts. Otherwise some pictures are held out, or
    some shards, if each would have to be fetched.

    Raises `InputError` if all of a class would be held out.
    """
    parts = [shard_part(shard.place) for shard in pictures.shards]
    test = TEST if TEST in parts else VALIDATION
    if TRAIN in parts and test in parts:
        wanted = {TRAIN: [TRAIN], TEST: [test]}.get(split, [TRAIN, test])
        mask = np.array([part in wanted for part in parts])
        beside = Counter(
            shard.name for shard, part in zip(pictures.shards, parts, strict=True) if part not in (TRAIN, test)
        )
        return np.flatnonzero(mask[pictures.shard_of]), beside, ()
    whole = _hold_out_shards(pictures) if split != "all" else []
    if not whole:
        return split_indices(labels, len(pictures), split), Counter(), ("test is held out",) * (split != "all")
    held_out = np.isin(pictures.shard_of, whole)
    if labels is not None and (lost := np.setdiff1d(labels[held_out], labels[~held_out])).size:
        raise InputError(
            f"the shards are sorted by class (class {lost[0]} is only in held-out ones): shuffle the pictures, or name "
            "some shards test"
        )
    notes = (f"test is held out, as whole shards: {len(whole):,}",)
    return np.flatnonzero(held_out == (split == TEST)), Counter(), notes


def _hold_out_shards(pictures: TarPictures) -> list[int]:
    """Return the shards to hold out as a whole, evenly spaced: a tenth, or as few as hold 10,000 pictures."""
    full = np.unique(pictures.shard_of).tolist()
    if len(full) < SHARE or not any(shard.is_remote for shard in pictures.shards):
        return []
    enough = -(-HELD_OUT * len(full) // len(pictures))
    return [full[number] for number in evenly_spaced(len(full), min(len(full) // SHARE, enough))]


def shard_part(place: str) -> str | None:
    """Return which part the name of a shard, or else of its folder, stands for; None if for no part."""
    for name in reversed(path_of(place).rpartition(".")[0].split("/")[-2:]):
        found = {part for word in re.split(r"[\W\d_]+", name) if (part := part_of(word))}
        if len(found) == 1:
            return found.pop()
    return None
