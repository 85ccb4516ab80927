"""One code of many digits as several codes, one for each of as many grids, so that a prior can learn it.

Nothing here imports torch, because options are checked before a command imports it.

Shapes: b batch, *sites the sites of a grid, D digits of a code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from codegrid.codes import Codes, Grid, Layout, Sides
from codegrid.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

MAX_FACTOR = 2**12  # codes of a grid, by default: the head of a prior has a row for each of them

Levels = tuple[int, ...]


class Factors:
    """Shares out the digits of a code, in their order, to one or more grids of one shape.

    It chooses the way with the fewest codes in total: 18 bits in two grids are 9 and 9. Within a grid the first digit
    counts the units. No grid refines another; the first is only the first that a prior draws.

    Args:
        levels: how many values each digit has, D numbers of at most 2¹².
        num_factors: how many grids; None for as few as have at most 2¹² codes each.

    Raises `InputError` if there are fewer digits than grids.
    """

    def __init__(self, levels: Sequence[int], num_factors: int | None = None) -> None:
        if num_factors is not None and num_factors > len(levels):
            words = f"the code has only {len(levels)} numbers to share out: give at most as many"
            raise InputError(f"`num_factors` {num_factors}: {words}")
        counts, limit = ([num_factors], math.inf) if num_factors else (range(1, len(levels) + 1), MAX_FACTOR)
        ways = (_share_out(tuple(levels), count) for count in counts)
        self.groups = next(way for way in ways if max(map(math.prod, way)) <= limit)
        self.sizes = [math.prod(group) for group in self.groups]
        ends = accumulate((len(group) for group in self.groups), initial=0)
        self.axes = [slice(*each) for each in pairwise(ends)]  # of each grid, among the D digits

    def layout(self, sites: Sides) -> Layout:
        """Return the grids of latents with these sites."""
        return tuple(Grid(sites, size) for size in self.sizes)

    def codes(self, digits: Tensor) -> Codes:
        """Return the codes of digits (b, *sites, D) int64, one tensor (b, *sites) int64 for each grid."""
        return tuple(_count(group, digits[..., axes]) for group, axes in zip(self.groups, self.axes, strict=True))

    def digits(self, codes: Codes) -> list[Tensor]:
        """Return the digits, D tensors (b, *sites), of codes, one tensor (b, *sites) for each grid."""
        return [digit for group, of_grid in zip(self.groups, codes, strict=True) for digit in _spell(group, of_grid)]


def _count(levels: Levels, digits: Tensor) -> Tensor:
    """Return the codes of digits."""
    code, place = digits[..., 0].contiguous(), 1
    for axis, level in enumerate(levels[:-1], 1):
        place *= level
        code = code + digits[..., axis] * place
    return code


def _spell(levels: Levels, code: Tensor) -> Iterator[Tensor]:
    """Yield the digits of codes, the first one first."""
    for level in levels:
        yield code % level
        code = code // level


@cache
def _share_out(levels: Levels, count: int) -> tuple[Levels, ...]:
    """Cut levels into as many groups, so that the products of the groups have the smallest sum."""
    if count == 1:
        return (levels,)
    ends = range(1, len(levels) - count + 2)
    ways = [(levels[:end], *_share_out(levels[end:], count - 1)) for end in ends]
    return min(ways, key=lambda groups: sum(map(math.prod, groups)))
