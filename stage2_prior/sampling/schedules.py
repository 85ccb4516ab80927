"""In which order, and how many at a time, sites are drawn by priors that draw many at once."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from codegrid.codes import Layout, Sides
from codegrid.sampling_config import MaskSchedule

BASES = (2, 3, 5)  # of the Halton sequence, for each axis of a grid


def masked_share(schedule: MaskSchedule, progress: Tensor) -> Tensor:
    """Return the share of sites that are still hidden, 1 ... 0, when a share of the steps (...), 0 ... 1, is done."""
    if schedule == "cosine":
        return (progress * (math.pi / 2)).cos()
    if schedule == "arccos":
        return progress.acos() * (2 / math.pi)
    return 1 - progress ** {"linear": 1, "square": 2, "cubic": 3, "root": 0.5}[schedule]


@lru_cache(maxsize=1024)
def hidden_after(unknown: int, steps: int, schedule: MaskSchedule) -> tuple[int, ...]:
    """Return how many of a sample's unknown sites are still hidden after each step, the last time 0.

    Each step draws at least one site, so there must be at least as many sites as steps.

    Examples:
        >>> hidden_after(10, 4, "cosine")
        (9, 7, 3, 0)
    """
    progress = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    left, counts = unknown, []
    for step, share in enumerate(masked_share(schedule, progress).tolist(), 1):
        # rounding must not decide: 0.5 · 10 sites may be 4.999...
        wanted = math.floor(unknown * share + 1e-9) if step < steps else 0
        left = min(left - 1, max(steps - step, wanted))
        counts.append(left)
    return tuple(counts)


def halton_ranks(layout: Layout) -> Tensor:
    """Return each site's place (sites) in an order that spreads evenly over a grid, grid after grid, coarse to fine."""
    ranks, first = [], 0
    for grid in layout:
        ranks.append(torch.from_numpy(_halton_ranks(grid.shape)) + first)
        first += grid.num_sites
    return torch.cat(ranks)


@lru_cache(maxsize=64)
def _halton_ranks(shape: Sides) -> np.ndarray:
    """Return the place (sites) of each site in the order in which the Halton sequence first meets it.

    Of as many points as a product of powers of the bases, each cell of that many equal ones holds exactly one. With
    cells of half a site, or less, no site is missed.
    """
    powers = [base ** math.ceil(math.log(2 * side, base) - 1e-9) for side, base in zip(shape, BASES, strict=False)]
    numbers = np.arange(math.prod(powers))
    sites = np.zeros(len(numbers), dtype=np.int64)
    for side, base in zip(shape, BASES, strict=False):
        sites = sites * side + np.minimum((_radical_inverse(numbers, base) * side).astype(np.int64), side - 1)
    met, first = np.unique(sites, return_index=True)
    ranks = np.empty(math.prod(shape), dtype=np.int64)
    ranks[met[np.argsort(first)]] = np.arange(len(met))
    return ranks


def _radical_inverse(numbers: np.ndarray, base: int) -> np.ndarray:
    """Return the numbers with their digits mirrored at the point: in base 2, 6 = 110 becomes 0.011."""
    mirrored, scale = np.zeros(len(numbers)), 1.0
    while numbers.any():
        numbers, digits = np.divmod(numbers, base)
        scale /= base
        mirrored += digits * scale
    return mirrored
