"""Codes of a run as one of its priors sees them: the training codes, and held-out ones.

Shapes: n rows, *shape the sites of each grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from codegrid.codes import Codes, Condition
from codegrid.data.code_files import AnyCodes
from codegrid.data.codes import CodeBatch, CodeDataset
from codegrid.data.images import evenly_spaced
from codegrid.data.loading import in_batches, in_order
from codegrid.data.splits import Subset, hold_out
from codegrid.data.videos import see_earlier
from codegrid.errors import InputError
from codegrid.pipelines.evaluation.reconstruction import prior_inputs
from codegrid.pipelines.generation.artifacts import Artifacts
from codegrid.protocols import Prior

BATCH = 256

CodeRows = AnyCodes | Subset


class Rows(NamedTuple):
    """Codes that a prior draws, and its condition."""

    codes: Codes  # (n, *shape) int64
    given: Condition

    @property
    def num_rows(self) -> int:
        """The number of rows, n."""
        return len(self.codes[0])

    @property
    def flat(self) -> torch.Tensor:
        """All codes of a row beside each other, (n, sites of all grids)."""
        return torch.cat([grid.flatten(1) for grid in self.codes], 1)

    def select(self, index: slice | list[int]) -> Rows:
        """Return some of the rows."""
        return Rows(tuple(grid[index] for grid in self.codes), self.given.rows(index))

    def thin_out(self, at_most: int) -> Rows:
        """Return some rows, evenly spaced: the first rows of sorted data would show only a few classes."""
        return self.select(evenly_spaced(self.num_rows, at_most))

    def batches(self, size: int = BATCH) -> Iterator[Rows]:
        """Yield all rows, some at a time."""
        for rows in in_order(self.num_rows, size):
            yield self.select(slice(rows.start, rows.stop))


def read_rows(codes: CodeRows, prior: Prior, at_most: int) -> Rows:
    """Return up to `at_most` rows of a code dataset, spread over all of it."""
    return _as_rows(prior, see_earlier(codes, prior).batch(evenly_spaced(len(codes), at_most)))


def all_rows(codes: CodeRows, prior: Prior, size: int = 4096) -> Iterator[Rows]:
    """Yield all rows of a code dataset, in all views, some at a time."""
    seen = see_earlier(codes, prior)
    for view in range(codes.views):
        for numbers in in_batches(range(len(codes)), size):
            yield _as_rows(prior, seen.batch(numbers, view))


def _as_rows(prior: Prior, batch: CodeBatch) -> Rows:
    """Return a batch as rows on the CPU: there are many rows, and few are used at once."""
    codes, given = prior_inputs(prior, batch)
    return Rows(tuple(grid.cpu() for grid in codes), given.to("cpu"))


def code_dataset(found: Artifacts) -> CodeDataset | None:
    """Return the codes of a run if they are a code dataset; plain arrays record too little."""
    return found.codes if isinstance(found.codes, CodeDataset) else None


def codes_for(found: Artifacts, name: str, prior: Prior) -> tuple[CodeRows | None, CodeRows | None]:
    """Return the codes that a prior was trained on, and held-out ones; None if there are none that fit it.

    Without validation codes, some of the training codes are used instead.
    """
    codes = code_dataset(found)
    training = codes if _fits(found, "codes", codes, name, prior) else None
    if found.validation is not None:
        return training, found.validation if _fits(found, "validation_codes", found.validation, name, prior) else None
    if training is None:
        return None, None
    try:
        return hold_out(training, None)
    except InputError:  # too few
        return training, None


def _fits(found: Artifacts, place: str, codes: CodeDataset | None, name: str, prior: Prior) -> bool:
    """Return whether codes are of the tokenizer, the grids and the classes that a prior learnt."""
    if codes is None:
        return False
    prints, grids = found.tokenizer_fingerprints(), dict(enumerate(codes.layout))
    if prints[place] != prints[name] or not set(prior.given_grids) <= grids.keys():
        return False
    if [grids.get(number) for number in prior.grids] != list(prior.layout):
        return False
    return not prior.conditions.num_classes or list(codes.classes) == list(prior.conditions.classes)
