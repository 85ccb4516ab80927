"""The nearest codebook entry, and the gradient that passes through it.

Shapes: n sites, D embedding_dim, K codebook entries.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Tile(NamedTuple):
    """How many pairs of a site and an entry, and how many entries, the search looks at together."""

    pairs: int
    entries: int


# The matrix of all distances is never held whole. On a CPU its tiles, 4 MB of floats, stay in the cache; on a GPU fewer
# and larger ones, of 256 MB, save launches.
TILES = {"cpu": Tile(pairs=2**20, entries=2**10), "cuda": Tile(pairs=2**26, entries=2**16)}


def nearest_codes(latents: torch.Tensor, codebook: torch.Tensor, distance: str = "euclidean") -> torch.Tensor:
    """k(x) = argmin_j ‖z_e(x) − e_j‖ (Eq. 1): latents (n, D), codebook (K, D) → codes (n,) int64.

    `distance` is a name in `DISTANCES`.
    """
    entries, offsets = DISTANCES[distance](codebook)
    tile = TILES.get(latents.device.type, TILES["cuda"])
    entries_at_once = min(tile.entries, len(codebook))
    sites_at_once = max(1, tile.pairs // entries_at_once)
    # one tile's memory serves them all: fresh memory costs the operating system as long as the product takes
    memory = latents.new_empty(min(sites_at_once, len(latents)) * entries_at_once)
    pieces = latents.split(sites_at_once)
    return torch.cat([_search(sites, entries, offsets, entries_at_once, memory) for sites in pieces])


def _search(
    sites: torch.Tensor, entries: torch.Tensor, offsets: torch.Tensor, entries_at_once: int, memory: torch.Tensor
) -> torch.Tensor:
    """The smallest offset − z·entry of some sites, over one group of entries after the other."""
    for first in range(0, len(entries), entries_at_once):
        group = slice(first, first + entries_at_once)
        shape = (len(sites), len(offsets[group]))
        gaps = memory[: shape[0] * shape[1]].view(shape)
        torch.addmm(offsets[group], sites, entries[group].T, alpha=-1, out=gaps)
        gaps, found = gaps.min(1)  # and not argmin, which takes longer on a CPU
        if first == 0:
            least, codes = gaps, found
        else:
            closer = gaps < least
            least, codes = torch.where(closer, gaps, least), torch.where(closer, found + first, codes)
    return codes


def _euclidean(codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # with e = c + d, c the mean entry: ‖z − e‖² = ‖z − c‖² + 2 (½‖d‖² + c·d − z·d), and ‖z − c‖² is the same for every
    # entry. Without c the terms would cancel, and codes be wrong, where all latents lie far from the origin.
    centre = codebook.mean(0)
    entries = codebook - centre
    return entries, entries.square().sum(1) / 2 + entries @ centre


def _cosine(codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # 1 − cos(z, e) = 1 − z·e / (‖z‖ ‖e‖), and ‖z‖ is the same for every entry
    return F.normalize(codebook, dim=1), codebook.new_zeros(len(codebook))


# name → what makes (entries, offsets) of a codebook, such that the nearest entry has the smallest offset − z·entry
DISTANCES: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "euclidean": _euclidean,
    "cosine": _cosine,
}


class StraightThrough(torch.autograd.Function):
    """z_q forward, bit for bit; the gradient of z_q goes to z_e unchanged, and none to the codebook.

    The usual z + (q − z).detach() is off by a rounding error in the forward pass.
    """

    @staticmethod
    def forward(ctx, latents: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """The vectors as they are."""
        return vectors.view_as(vectors)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient as it is, to the latents alone."""
        return gradient, None
