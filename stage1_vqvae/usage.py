"""How much of a codebook is used: perplexity and share of entries, over as many batches as one likes.

Shapes: K codebook entries.
"""

from typing import NamedTuple

import torch


class Usage(NamedTuple):
    """Figures over everything that was counted."""

    perplexity: float  # exp(−Σ p_k log p_k), 1 ... K
    codebook_usage: float  # share of entries that occurred, 0 ... 1
    unused_entries: int  # how many never did, 0 ... K


def perplexity(counts: torch.Tensor) -> torch.Tensor:
    """exp(−Σ p_k log p_k) () of codes that occurred `counts` (K,) times."""
    p = counts.double() / counts.sum().clamp_min(1)
    return torch.special.entr(p).sum().exp()


def usage_of(counts: torch.Tensor) -> Usage:
    """All figures of codes that occurred `counts` (K,) times."""
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
        """Perplexity and usage of all codes so far."""
        return usage_of(self.counts)
