"""Values that all floors exchange: grids, codes, conditions, what is known of a sample, how far a sampler has come.

Nothing here imports torch: the methods call those of the tensors that they are given.

Shapes: b batch, *shape the sites of a grid, D embedding_dim, K num_embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .limits import MAX_ENTRIES, MAX_SIDE, check_whole

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .noise import Noise

NO_LABEL = HIDDEN = -1  # in the place of a class: of no particular one; in the place of a code: not known
PAD = 0  # behind the end of a text; a row of PAD stands for no text
MAX_AXES = 3  # of a grid

Sides = tuple[int, ...]  # of a grid or an image: (t,), (h, w) or (t, h, w)


@dataclass(frozen=True)
class Grid:
    """A grid of codes.

    Args:
        shape: sites, coarse axes first: (t,), (h, w) or (t, h, w).
        num_embeddings: K; the codes are 0 ... K-1.

    Raises `InputError` where a size is out of its range.

    Examples:
        >>> print(Grid((7, 7), 256), "at", Grid((7, 7), 256).num_sites, "sites")
        7×7 codes out of 256 at 49 sites
    """

    shape: Sides
    num_embeddings: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))  # a list from JSON
        check_whole("grid axes", len(self.shape), 1, MAX_AXES)
        for side in self.shape:
            check_whole("grid shape", side, 1, MAX_SIDE)
        check_whole("num_embeddings", self.num_embeddings, 1, MAX_ENTRIES)

    @property
    def num_sites(self) -> int:
        """The product of the sides."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{'×'.join(map(str, self.shape))} codes out of {self.num_embeddings:,}"

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values; `Grid(**fields)` is the way back."""
        return {"shape": list(self.shape), "num_embeddings": self.num_embeddings}


Layout = tuple[Grid, ...]  # coarse to fine; several codes a site are several grids of one shape
Codes = tuple["Tensor", ...]  # (b, *shape) int64, one for each grid of a layout


def make_layout(grids: Sequence[Grid | dict[str, Any]]) -> Layout:
    """Return a layout of grids, or of their fields as JSON values."""
    return tuple(grid if isinstance(grid, Grid) else Grid(**grid) for grid in grids)


def describe_layout(layout: Layout) -> str:
    """Say in words what the grids of a layout are: `7×7 codes out of 256`, or `2 grids of ...` for equal ones."""
    if len(set(layout)) == 1:
        return str(layout[0]) if len(layout) == 1 else f"{len(layout)} grids of {layout[0]}"
    return ", ".join(map(str, layout))


@dataclass(frozen=True)
class Signal:
    """A kind of data that a tokenizer turns into codes.

    Args:
        kind: `image`; the readers and writers of a kind are chosen by it.
        channels: c.
        size: (H, W) of an image.
        rate: samples or frames a second; None where there is no time.

    Examples:
        >>> Signal(channels=1, size=(28, 28)).shape
        (1, 28, 28)
    """

    kind: str = "image"
    channels: int = 3
    size: Sides = (32, 32)
    rate: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        check_whole("channels", self.channels, 1, MAX_SIDE)
        for side in self.size:
            check_whole("size", side, 1, MAX_SIDE)

    @property
    def shape(self) -> tuple[int, ...]:
        """(c, *size), without the batch."""
        return (self.channels, *self.size)

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values; `Signal(**fields)` is the way back."""
        return {"kind": self.kind, "channels": self.channels, "size": list(self.size), "rate": self.rate}


class Condition(NamedTuple):
    """Everything that is known beside the codes; every part may be missing."""

    labels: Tensor | None = None  # (b,) int64, NO_LABEL where hidden
    text: Tensor | None = None  # (b, t) int64, PAD on the right; a row of PAD stands for no text
    codes: Codes = ()  # (b, *shape) coarser grids or earlier frames, the oldest first; HIDDEN where not known
    actions: Tensor | None = None  # (b, frames) int64
    features: tuple[Tensor, ...] = ()  # (b, D, *sites) with gradient

    def hidden(self) -> Condition:
        """Return the condition with labels and text hidden, the rest kept: the other half of guidance."""
        labels = None if self.labels is None else self.labels.new_full(self.labels.shape, NO_LABEL)
        text = None if self.text is None else self.text.new_full(self.text.shape, PAD)
        return self._replace(labels=labels, text=text)

    def each(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """Return the condition with every tensor changed alike."""
        labels, text, actions = (
            part if part is None else change(part) for part in (self.labels, self.text, self.actions)
        )
        return Condition(labels, text, tuple(map(change, self.codes)), actions, tuple(map(change, self.features)))

    def rows(self, index: Any) -> Condition:
        """Return the condition of some samples: a slice, or numbers (m,)."""
        return self.each(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> Condition:
        """Return the condition on a device."""
        return self.each(lambda tensor: tensor.to(device))


class Known(NamedTuple):
    """Sites that a sample must keep."""

    codes: Codes  # (b, *shape) int64; what is not kept does not matter
    mask: tuple[Tensor, ...]  # (b, *shape) bool, True where a code is kept

    def rows(self, index: Any) -> Known:
        """Return the part of some samples: a slice, or numbers (m,)."""
        return Known(tuple(codes[index] for codes in self.codes), tuple(mask[index] for mask in self.mask))


class Progress(NamedTuple):
    """How far a sampler has come; the last one that it yields is the result."""

    codes: Codes  # (b, *shape) int64, live tensors: they change with the next step
    drawn: tuple[Tensor, ...]  # (b, *shape) bool, True where a code is drawn or was known
    done: float  # share of the work, 0 ... 1


class Moment(NamedTuple):
    """Where training stands. None in its place means evaluation: no noise, and nothing is noted."""

    step: int  # from 0
    steps: int
    noise: Noise  # of the samples of this batch


class Losses(NamedTuple):
    """Terms to minimise, and figures to log, of one training pass."""

    terms: dict[str, Tensor]  # () under their names in the paper, weighted: their sum is minimised
    figures: dict[str, Tensor]  # () only logged

    @property
    def total(self) -> Tensor:
        """The sum of the terms ()."""
        return sum(self.terms.values())  # type: ignore[return-value]
