"""What a prior must beat: bits per code of frequencies alone, without any context.

Shapes: n grids, h w code grid, K num_embeddings.
"""

import math
from typing import NamedTuple

import torch

PRIOR_COUNTS = 8.0  # grids that the frequencies of the whole grid are worth at a single site


class Frequencies(NamedTuple):
    """How often codes occur, in the grid as a whole and at each site; a smoothed count, so that no code has none."""

    overall: torch.Tensor  # (K,) float64, sums to 1
    pairs: torch.Tensor  # (m,) int64, sorted: site · K + code, of those pairs that occur
    counts: torch.Tensor  # (m,) int64
    num_grids: int

    def bits_overall(self, codes: torch.Tensor) -> torch.Tensor:
        """Mean −log2 of the frequencies of codes (n, h, w) in the grid as a whole: (h, w)."""
        return -self.overall[codes].log2().mean(0)

    def bits_by_site(self, codes: torch.Tensor) -> torch.Tensor:
        """Mean −log2 of the frequencies of codes (n, h, w) at their sites: (h, w)."""
        wanted = _pair(codes, len(self.overall))
        places = torch.searchsorted(self.pairs, wanted).clamp_max(len(self.pairs) - 1)
        counts = torch.where(self.pairs[places] == wanted, self.counts[places], 0)
        smoothed = counts + PRIOR_COUNTS * self.overall[codes.flatten(1)]
        return -(smoothed / (self.num_grids + PRIOR_COUNTS)).log2().mean(0).view(codes.shape[1:])


def count_frequencies(codes: torch.Tensor, num_embeddings: int) -> Frequencies:
    """Those of grids (n, h, w)."""
    overall = torch.bincount(codes.flatten(), minlength=num_embeddings).double() + 1
    pairs, counts = _pair(codes, num_embeddings).unique(return_counts=True)
    return Frequencies(overall / overall.sum(), pairs, counts, len(codes))


def entropy_of(codes: torch.Tensor, num_embeddings: int) -> float:
    """Entropy in bits of single codes of grids (n, h, w)."""
    p = torch.bincount(codes.flatten(), minlength=num_embeddings).double() / codes.numel()
    return float(torch.special.entr(p).sum()) / math.log(2)


def _pair(codes: torch.Tensor, num_embeddings: int) -> torch.Tensor:
    """(n, h·w): a number for each pair of site and code."""
    sites = codes.flatten(1)
    return torch.arange(sites.shape[1]) * num_embeddings + sites
