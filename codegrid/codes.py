"""Values that all layers exchange: grids, codes, conditions, known sites, the progress of a sampler.

Nothing here imports torch: the methods only call methods of the tensors that they are given.

Shapes: b batch, *shape the sites of a grid, D embedding_dim, K num_embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .limits import MAX_ENTRIES, MAX_SIDE, check_sides, check_whole

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .noise import Noise

NO_LABEL = HIDDEN = -1  # as a class: none in particular; as a code: unknown
PAD = 0  # after the end of a text; a row of PAD means no text
MAX_AXES = 3  # of a grid

Sides = tuple[int, ...]  # of a grid or an image: (t,), (h, w) or (t, h, w)


@dataclass(frozen=True)
class Grid:
    """A grid of codes.

    Args:
        shape: sites, coarse axes first: (t,), (h, w) or (t, h, w).
        num_embeddings: K; the codes are 0 ... K-1.

    Raises `InputError` if a size is out of range.

    Examples:
        >>> print(Grid((7, 7), 256), "at", Grid((7, 7), 256).num_sites, "sites")
        7×7 codes out of 256 at 49 sites
    """

    shape: Sides
    num_embeddings: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))  # a list from JSON
        check_whole("grid axes", len(self.shape), 1, MAX_AXES)
        check_sides("grid shape", self.shape)
        check_whole("num_embeddings", self.num_embeddings, 1, MAX_ENTRIES)

    @property
    def num_sites(self) -> int:
        """The product of the sides."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{'×'.join(map(str, self.shape))} codes out of {self.num_embeddings:,}"

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, from which `Grid(**fields)` rebuilds the grid."""
        return {"shape": list(self.shape), "num_embeddings": self.num_embeddings}


Layout = tuple[Grid, ...]  # coarse to fine; several codes per site are several grids of the same shape
Codes = tuple["Tensor", ...]  # (b, *shape) int64, one for each grid of a layout
Latents = tuple["Tensor", ...]  # (b, D, *sites), one for each level of a tokenizer, coarse to fine


def make_layout(grids: Sequence[Grid | dict[str, Any]]) -> Layout:
    """Make a layout from grids, or from their fields as JSON values."""
    return tuple(grid if isinstance(grid, Grid) else Grid(**grid) for grid in grids)


def describe_layout(layout: Layout) -> str:
    """Describe the grids of a layout in words: `7×7 codes out of 256`, or `2 grids of ...` if they are equal."""
    if len(set(layout)) == 1:
        return str(layout[0]) if len(layout) == 1 else f"{len(layout)} grids of {layout[0]}"
    return ", ".join(map(str, layout))


@dataclass(frozen=True)
class Signal:
    """A kind of data that a tokenizer turns into codes.

    Args:
        kind: `image`, or `sound`; it selects the readers and writers.
        channels: c.
        size: (H, W) of an image, (T,) of a window of sound.
        rate: samples or frames per second; None for signals without time.

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
        check_sides("size", self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """(c, *size), without the batch."""
        return (self.channels, *self.size)

    @property
    def item(self) -> str:
        """What one item of such data is called: `image`, or `window` of sound."""
        return "window" if self.kind == "sound" else self.kind

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, from which `Signal(**fields)` rebuilds the signal."""
        return {"kind": self.kind, "channels": self.channels, "size": list(self.size), "rate": self.rate}


class Condition(NamedTuple):
    """Everything that is known besides the codes; any part may be missing."""

    labels: Tensor | None = None  # (b,) int64, NO_LABEL where hidden
    text: Tensor | None = None  # (b, t) int64, PAD on the right; a row of PAD means no text
    codes: Codes = ()  # (b, *shape) coarser grids or earlier frames, oldest first; HIDDEN where unknown
    actions: Tensor | None = None  # (b, frames) int64
    features: tuple[Tensor, ...] = ()  # (b, D, *sites) with gradient
    lengths: Tensor | None = None  # (b,) int64: samples, or codes of a grid, that count; padding follows

    def hidden(self) -> Condition:
        """Return the condition with labels and text hidden, for the unconditional half of guidance."""
        labels = None if self.labels is None else self.labels.new_full(self.labels.shape, NO_LABEL)
        text = None if self.text is None else self.text.new_full(self.text.shape, PAD)
        return self._replace(labels=labels, text=text)

    def each(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """Return the condition with `change` applied to every tensor."""
        labels, text, actions, lengths = (
            part if part is None else change(part) for part in (self.labels, self.text, self.actions, self.lengths)
        )
        codes, features = tuple(map(change, self.codes)), tuple(map(change, self.features))
        return Condition(labels, text, codes, actions, features, lengths)

    def rows(self, index: Any) -> Condition:
        """Return the condition of some samples, selected by a slice or by indices (m,)."""
        return self.each(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> Condition:
        """Return the condition on a device."""
        return self.each(lambda tensor: tensor.to(device))


class Known(NamedTuple):
    """Sites that a sample must keep."""

    codes: Codes  # (b, *shape) int64; codes that are not kept do not matter, unless a prior keeps roughly
    mask: tuple[Tensor, ...]  # (b, *shape) bool, True where a code is kept

    def rows(self, index: Any) -> Known:
        """Return the known sites of some samples, selected by a slice or by indices (m,)."""
        return Known(tuple(codes[index] for codes in self.codes), tuple(mask[index] for mask in self.mask))


class Progress(NamedTuple):
    """Progress of a sampler; the last item that it yields is the result."""

    codes: Codes  # (b, *shape) int64, live tensors: they change with the next step
    drawn: tuple[Tensor, ...]  # (b, *shape) bool, True where a code is drawn or was known
    done: float  # share of the work, 0 ... 1


class Moment(NamedTuple):
    """A point in training. None in its place means evaluation: no noise, and nothing is recorded."""

    step: int  # from 0
    steps: int
    noise: Noise  # of this batch's samples


class Losses(NamedTuple):
    """Terms to minimise, and figures to log, of one training pass."""

    terms: dict[str, Tensor]  # () by their names in the paper, weighted; their sum is minimised
    figures: dict[str, Tensor]  # () logged only

    @property
    def total(self) -> Tensor:
        """The sum of the terms ()."""
        return sum(self.terms.values())  # type: ignore[return-value]
