"""A one-line description of the data set that was read, so that a wrong one is noticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from codegrid.file_names import printable

SHOWN = 8  # classes named one by one
EXAMPLES = 3  # names of files left out, for each reason
LENGTH = 24  # characters of a name


@dataclass(frozen=True)
class Found:
    """A data set as it was read: `str(found)` is one line.

    Args:
        images: number of items in the part.
        classes: the printable name of each class, and its number of items in the part; empty without labels.
        name: of the data set.
        part: `train` or `test`; empty if unknown.
        others: number of items in the other parts.
        left_out: what was not read, by reason: how often each name, or ending of names, occurred.
        notes: anything else worth knowing.
        item: what one of the items is called, for example `image`.
    """

    images: int
    classes: tuple[tuple[str, int], ...] = ()
    name: str = ""
    part: str = ""
    others: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, Counter[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    item: str = "image"

    def __str__(self) -> str:
        heading = ", ".join(filter(None, (printable(self.name), self.part)))
        parts = [f"{heading}{': ' * bool(heading)}{self._items(self.images)}{self._in_classes()}"]
        parts += [f"{part}: {self._items(count)}" for part, count in self.others.items()]
        left_out = [f"{sum(names.values()):,} {reason} ({_some(names)})" for reason, names in self.left_out.items()]
        parts += [f"left out: {', '.join(left_out)}"] * bool(left_out)
        return "; ".join([*parts, *self.notes])

    def _items(self, count: int) -> str:
        return f"{count:,} {self.item}{'s' * (count != 1)}"

    def _in_classes(self) -> str:
        """Describe how many images each class has."""
        if not self.classes:
            return " without labels"
        counts = [count for _, count in self.classes]
        if len(self.classes) <= SHOWN:
            each = ", ".join(f"{_short(name)} {count:,}" for name, count in self.classes)
            return f" in {len(counts)} {'class' if len(counts) == 1 else 'classes'} ({each})"
        few, many = min(counts), max(counts)
        return f" in {len(counts):,} classes of {few:,}{f' to {many:,}' * (few < many)}"


def count_classes(labels: ArrayLike | None, classes: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Return the name of each class, and how often its label occurs in `labels` (n,); empty without labels."""
    if labels is None:
        return ()
    return tuple(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=False))


def _some(names: Counter[str]) -> str:
    more = ", …" if len(names) > EXAMPLES else ""
    return ", ".join(_short(printable(name)) for name in sorted(names)[:EXAMPLES]) + more


def _short(name: str) -> str:
    return name if len(name) <= LENGTH else f"{name[: LENGTH - 1]}…"
