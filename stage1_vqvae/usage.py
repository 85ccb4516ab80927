"""How much of a codebook is used: perplexity and share of entries, over as many batches as one likes.

Shapes: K codebook entries.
"""

from typing import NamedTuple

import torch

from codegrid.codes import Codes, Layout
from codegrid.devices import widest


class Usage(NamedTuple):
    """Figures over everything that was counted."""

    perplexity: float  # exp(−Σ p_k log p_k), 1 ... K
    codebook_usage: float  # share of entries that occurred, 0 ... 1
    unused_entries: int  # how many never did, 0 ... K


def perplexity(counts: torch.Tensor) -> torch.Tensor:
    """exp(−Σ p_k log p_k) () of codes that occurred `counts` (K,) times."""
    p = counts.to(widest(counts.device)) / counts.sum().clamp_min(1)
    return torch.special.entr(p).sum().exp()


def usage_of(counts: torch.Tensor) -> Usage:
    """Return all figures of codes that occurred `counts` (K,) times."""
    unused = int((counts == 0).sum())
    return Usage(float(perplexity(counts)), 1 - unused / len(counts), unused)


class UsageCounter:
    """Counts codes batch by batch; the figures do not depend on how they were cut into batches."""

    def __init__(self, num_embeddings: int) -> None:
        self.counts = torch.zeros(num_embeddings, dtype=torch.int64)

    def add(self, codes: torch.Tensor) -> None:
        """Count codes of any shape."""
        self.counts += torch.bincount(codes.flatten(), minlength=len(self.counts)).cpu()

    def figures(self) -> Usage:
        """Return perplexity and usage of all codes so far."""
        return usage_of(self.counts)


class LayoutUsage:
    """Counts the codes of each grid of a layout, batch by batch."""

    def __init__(self, layout: Layout) -> None:
        self.counters = [UsageCounter(grid.num_embeddings) for grid in layout]

    @property
    def counts(self) -> list[torch.Tensor]:
        """How often each code of each grid occurred, (K,) for each grid."""
        return [counter.counts for counter in self.counters]

    def add(self, codes: Codes) -> None:
        """Count codes (b, *shape), one tensor for each grid."""
        for counter, of_grid in zip(self.counters, codes, strict=True):
            counter.add(of_grid)

    def by_grid(self) -> list[Usage]:
        """Return the figures of each grid."""
        return [counter.figures() for counter in self.counters]

    def figures(self) -> Usage:
        """Return one figure of each kind over all grids: the mean perplexity, share and number of all their entries.

        The perplexity of all the codes of an image together would need more images than there are.
        """
        grids, entries = self.by_grid(), sum(len(counts) for counts in self.counts)
        unused = sum(usage.unused_entries for usage in grids)
        return Usage(sum(usage.perplexity for usage in grids) / len(grids), 1 - unused / entries, unused)
