"""Frames of videos with actions: the columns that say where a frame belongs, and windows of frames that follow.

A frame has the number of its episode, a recording without cuts, and its own number in it; its action is the one taken
once it has been seen, which leads to the next frame.

Shapes: n frames, b batch, f earlier frames, *shape the sites of a grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from codegrid.codes import HIDDEN, Codes, Condition, Layout
from codegrid.errors import InputError
from codegrid.limits import is_list_of
from codegrid.protocols import Prior

from .codes import CodeBatch, IndexedCodes
from .loading import Indices, item_numbers
from .manifest import ACTIONS, EPISODE, FRAME, LABELS
from .shards import Column

POSITION = "position"  # a column of x, y and angle, where the data tell them
MAX_ACTIONS = 1000


def numbered(episodes: torch.Tensor) -> torch.Tensor:
    """Return the number (n,) of each frame in its episode, for the episodes (n,) of frames in order."""
    _, lengths = torch.unique_consecutive(episodes, return_counts=True)
    return torch.cat([torch.arange(length) for length in (0, *lengths.tolist())])


class WindowBatch(NamedTuple):
    """Codes of some frames, and the frames and actions before each."""

    codes: Codes  # (b, *shape) int64, one for each grid
    columns: dict[str, Column]  # as those of a `CodeBatch`
    given: Condition  # the earlier frames (b, *shape), oldest first, and the action (b, f) taken at each

    @property
    def labels(self) -> torch.Tensor | None:
        """Labels (b,) int64; None if there are none."""
        return self.columns.get(LABELS)  # type: ignore[return-value]


class Windows(IndexedCodes):
    """Codes of frames, each with the earlier frames and actions that a prior is given: it reads `WindowBatch`es.

    No window crosses the border of two episodes, or a gap in one: what lies beyond it is HIDDEN.

    Args:
        codes: those of frames, in order, one view of each.
        frames: f, how many earlier frames.

    Raises `InputError` if the codes do not say to which episode a frame belongs.
    """

    def __init__(self, codes: IndexedCodes, frames: int) -> None:
        self.codes, self.frames, self.views = codes, frames, 1
        self.layout, self.classes = codes.layout, codes.classes  # type: ignore[attr-defined]
        episodes, numbers = codes.column(EPISODE), codes.column(FRAME)
        if episodes is None or numbers is None:
            raise InputError(
                f"`codes` have no columns {EPISODE} and {FRAME}: export them from a data set of videos, such as frames"
            )
        if codes.views > 1:
            raise InputError(
                f"`views` {codes.views}: each view of a frame is shifted differently from the frames before: use 1"
            )
        self.episodes, self.numbers, self.actions = episodes, numbers, codes.column(ACTIONS)

    def __len__(self) -> int:
        return len(self.codes)

    def batch(self, indices: Indices, view: int | Indices = 0) -> Any:
        """Return some frames, and what comes before them, as a `WindowBatch`; see `IndexedCodes.batch`."""
        rows = item_numbers(indices, len(self))
        back = np.arange(self.frames, 0, -1)
        before = rows[:, None] - back  # (b, f), oldest first
        places = before.clip(0)
        known = (before >= 0) & (self.episodes[places] == self.episodes[rows][:, None])
        known &= self.numbers[places] == self.numbers[rows][:, None] - back
        every, where = np.unique(np.concatenate([rows, places[known]]), return_inverse=True)
        read = self.codes.batch(every)  # each frame once
        own, earlier = where[: len(rows)], np.zeros(places.shape, np.int64)
        earlier[known] = where[len(rows) :]
        hidden = torch.from_numpy(~known)
        frames = tuple(
            grid[torch.from_numpy(earlier[:, number])].masked_fill(hidden[:, number, None, None], HIDDEN)
            for number in range(self.frames)
            for grid in read.codes
        )
        actions = None
        if self.actions is not None:
            actions = torch.from_numpy(np.where(known, self.actions[places], HIDDEN))
        columns: dict[str, Any] = {
            name: [column[i] for i in own] if isinstance(column, list) else column[torch.from_numpy(own)]
            for name, column in read.columns.items()
        }
        codes = tuple(grid[torch.from_numpy(own)] for grid in read.codes)
        return WindowBatch(codes, columns, Condition(codes=frames, actions=actions))


class FramesInMemory(IndexedCodes):
    """Codes of frames that were not exported, with their columns.

    Args:
        codes: (n, *shape) of each grid.
        layout: the grids.
        columns: (n, ...) by name.
        classes: the names of the labels.
    """

    def __init__(
        self, codes: Codes, layout: Layout, columns: Mapping[str, torch.Tensor], classes: Sequence[str] = ()
    ) -> None:
        self.codes, self.layout, self.columns, self.classes = codes, layout, columns, list(classes)

    def __len__(self) -> int:
        return len(self.codes[0])

    def batch(self, indices: Indices, view: int | Indices = 0) -> CodeBatch:
        """Return some frames, in the given order."""
        rows = torch.from_numpy(item_numbers(indices, len(self)))
        return CodeBatch(tuple(grid[rows] for grid in self.codes), {name: c[rows] for name, c in self.columns.items()})

    def column(self, name: str) -> np.ndarray | None:
        """Return a column (n, ...); None if there is none of this name."""
        return self.columns[name].numpy() if name in self.columns else None


def see_earlier(codes: Any, prior: Prior) -> Any:
    """Return codes as a prior reads them: with the earlier frames, if it is given any."""
    frames = getattr(prior, "context_frames", 0)
    return Windows(codes, frames) if frames else codes


def names_of_actions(codes: Any) -> tuple[str, ...]:
    """Return the names of the actions in a code dataset; empty if it has none.

    Raises `InputError` if an action has no name.
    """
    actions = codes.column(ACTIONS)
    names = getattr(codes, "provenance", {}).get(ACTIONS, [])
    if actions is None:
        return ()
    if not is_list_of(names, str) or not 1 <= len(names) <= MAX_ACTIONS:
        raise InputError(f"{codes.folder} does not name its actions: export the codes again")
    if len(actions) and not 0 <= actions.min() <= actions.max() < len(names):
        wrong = next(int(action) for action in actions if not 0 <= action < len(names))
        raise InputError(
            f"{codes.folder} holds action {wrong}, but the actions are 0 to {len(names) - 1}: export again"
        )
    return tuple(names)
