"""Measures of how likely codes are under a prior.

Shapes: b batch, K num_embeddings, *shape the sites of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from codegrid.codes import Codes, Condition, Losses
from codegrid.devices import widest
from codegrid.noise import Noise
from codegrid.padding import counted
from codegrid.protocols import Prior

Batches = Iterable[tuple[Codes, Condition]]


def cross_entropy(logits: Tensor, codes: Tensor) -> Tensor:
    """Return −log p of each code, in float32 at least: logits (b, K, *shape), codes (b, *shape) → (b, *shape)."""
    # one row per site: twice as fast as along the channels
    rows = logits.flatten(2).mT.reshape(-1, logits.shape[1])
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return F.cross_entropy(rows, codes.flatten(), reduction="none").view(codes.shape)


def mean_nats(logits: Sequence[Tensor], codes: Codes, lengths: Tensor | None = None) -> Losses:
    """Return the loss of codes (b, *shape): the mean nats per code, for logits (b, K, *shape) of each grid.

    Given `lengths` (b,), only the first codes of each grid count, in raster order.
    """
    nats = [cross_entropy(of_grid, grid).flatten(1) for of_grid, grid in zip(logits, codes, strict=True)]
    if lengths is not None:
        nats = [of_grid[counted(lengths, of_grid.shape[1])] for of_grid in nats]
    loss = torch.cat([of_grid.flatten() for of_grid in nats]).mean()
    return Losses({"nll": loss}, {"bits_per_code": loss.detach() / math.log(2)})


def bits_per_code(nats: Sequence[Tensor]) -> float:
    """Return the mean bits per code over several grids, from their nats."""
    total = sum(float(grid.to(widest(grid.device)).sum()) for grid in nats)
    return total / math.log(2) / sum(grid.numel() for grid in nats)


class Bits(NamedTuple):
    """Bits that codes cost under a prior, averaged over samples."""

    at_sites: tuple[Tensor, ...]  # (*shape) float64 for each grid, on the CPU
    num_samples: int

    @property
    def of_grids(self) -> tuple[float, ...]:
        """Mean bits per code, for each grid."""
        return tuple(float(grid.mean()) for grid in self.at_sites)

    @property
    def per_code(self) -> float:
        """Mean bits per code, over all grids."""
        return self.per_sample / sum(grid.numel() for grid in self.at_sites)

    @property
    def per_sample(self) -> float:
        """Bits of all codes of a sample in total."""
        return sum(float(grid.sum()) for grid in self.at_sites)


def measure(prior: Prior, batches: Batches, seed: int = 0, num_inference_steps: int | None = None) -> Bits | None:
    """Return what codes cost under a prior: −log2 p, or a bound on it, averaged over samples, not over batches.

    Args:
        batches: codes and their conditions.
        seed: seed of the noise of a bound; the noise of sample i is the same in any batch.
        num_inference_steps: steps of a bound; None: the prior's own number.

    Returns None if the prior has no likelihood.
    """
    sums: list[Tensor] = []
    count = 0
    for codes, given in batches:
        noise = Noise(seed, count, len(codes[0]), prior.device, ("nll",))
        nats = prior.nll(
            tuple(grid.to(prior.device) for grid in codes), given.to(prior.device), noise, num_inference_steps
        )
        if nats is None:
            return None
        of_batch = [grid.to(widest(grid.device)).sum(0).cpu().double() for grid in nats]
        sums = [old + new for old, new in zip(sums, of_batch, strict=True)] if sums else of_batch
        count += len(codes[0])
    return Bits(tuple(grid / math.log(2) / count for grid in sums), count)


def measure_error(prior: Prior, batches: Batches, seed: int = 0) -> dict[str, float]:
    """Return, by its name, the measure of a prior without a likelihood, averaged over samples; empty if it has none.

    Args:
        batches: codes and their conditions.
        seed: seed of the noise; that of sample i is the same in any batch.
    """
    name, errors, count = getattr(prior, "criterion", ""), 0.0, 0
    if not name:
        return {}
    for codes, given in batches:
        noise = Noise(seed, count, len(codes[0]), prior.device, ("error",))
        codes = tuple(grid.to(prior.device) for grid in codes)
        of_batch = cast(Any, prior).errors(codes, given.to(prior.device), noise)
        errors, count = errors + float(of_batch.to(widest(of_batch.device)).sum()), count + len(of_batch)
    return {name: errors / count} if count else {}


@torch.no_grad()
def measure_accuracy(prior: Prior, batches: Batches) -> float | None:
    """Return the share of codes that are the likeliest given those before; None if the prior has no such order."""
    if not hasattr(prior, "logits"):  # only `Sequential` has them
        return None
    hits = total = 0
    for codes, given in batches:
        codes = tuple(grid.to(prior.device) for grid in codes)
        for logits, grid in zip(prior.logits(codes, given.to(prior.device)), codes, strict=True):
            hits += int((logits.argmax(1) == grid).sum())
            total += grid.numel()
    return hits / total
