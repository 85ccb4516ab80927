"""Measures of how much of a codebook is used: perplexity and share of entries, over any number of batches.

Shapes: K codebook entries.
"""

from typing import NamedTuple

import torch

from codegrid.codes import HIDDEN, Codes, Layout
from codegrid.devices import widest


class Usage(NamedTuple):
    """Codebook usage over all codes that were counted."""

    perplexity: float  # exp(−Σ p_k log p_k), 1 ... K
    codebook_usage: float  # share of entries that occurred, 0 ... 1
    unused_entries: int  # number of entries that never occurred, 0 ... K


def count(codes: torch.Tensor, num_embeddings: int) -> torch.Tensor:
    """Return how often each code (K,) occurs; HIDDEN ones are left out."""
    return torch.bincount(codes.flatten() - HIDDEN, minlength=num_embeddings + 1)[1:]  # HIDDEN is -1


def perplexity(counts: torch.Tensor) -> torch.Tensor:
    """Return the perplexity exp(−Σ p_k log p_k) () of codes that occurred `counts` (K,) times."""
    p = counts.to(widest(counts.device)) / counts.sum().clamp_min(1)
    return torch.special.entr(p).sum().exp()


def usage_of(counts: torch.Tensor) -> Usage:
    """Return the usage of codes that occurred `counts` (K,) times."""
    unused = int((counts == 0).sum())
    return Usage(float(perplexity(counts)), 1 - unused / len(counts), unused)


def perplexities(codes: Codes, layout: Layout) -> dict[str, torch.Tensor]:
    """Return the perplexity of a batch's codes (b, *shape) as figures: the mean over grids, and each of several.

    Codes that are HIDDEN do not count.
    """
    each = [perplexity(count(of_grid, grid.num_embeddings)) for of_grid, grid in zip(codes, layout, strict=True)]
    of_grids = {f"batch_perplexity_{number}": value for number, value in enumerate(each)} if len(each) > 1 else {}
    return {"batch_perplexity": torch.stack(each).mean(), **of_grids}


class LayoutUsage:
    """Counts the codes of each grid of a layout, batch by batch; the batch sizes do not affect the result."""

    def __init__(self, layout: Layout) -> None:
        self.counts = [torch.zeros(grid.num_embeddings, dtype=torch.int64) for grid in layout]  # (K,) for each grid

    def add(self, codes: Codes) -> None:
        """Count codes (b, *shape), one tensor for each grid, but none that is HIDDEN."""
        for counts, of_grid in zip(self.counts, codes, strict=True):
            counts += count(of_grid, len(counts)).cpu()

    def by_grid(self) -> list[Usage]:
        """Return the usage of each grid."""
        return [usage_of(counts) for counts in self.counts]

    def figures(self) -> Usage:
        """Return the usage over all grids: the mean perplexity, and share and number of all their entries.

        Measuring the joint perplexity of all codes of an image would take more images than there are.
        """
        grids, entries = self.by_grid(), sum(len(counts) for counts in self.counts)
        unused = sum(usage.unused_entries for usage in grids)
        return Usage(sum(usage.perplexity for usage in grids) / len(grids), 1 - unused / entries, unused)
