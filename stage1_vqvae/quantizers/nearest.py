"""The search for the nearest codebook entry.

Shapes: n sites, D embedding_dim, K codebook entries.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .native import find_library, search


class Tile(NamedTuple):
    """Numbers of pairs of a site and an entry, and of entries, that the search handles at once."""

    pairs: int
    entries: int


# The matrix of all distances is never held whole. On a CPU its tiles, 4 MB of floats, stay in the cache; on a GPU fewer
# and larger ones, of 256 MB, save launches.
TILES = {"cpu": Tile(pairs=2**20, entries=2**10), "cuda": Tile(pairs=2**26, entries=2**16)}
PARTS = 16  # of a row of gaps, compared side by side


def nearest_codes(latents: torch.Tensor, codebook: torch.Tensor, distance: str = "euclidean") -> torch.Tensor:
    """Return the codes k(x) = argmin_j ‖z_e(x) − e_j‖ (Eq. 1), (n,) int64, of latents (n, D) in a codebook (K, D).

    `distance` is a name in `DISTANCES`.
    """
    return least_codes(latents, *DISTANCES[distance](codebook))


def least_codes(latents: torch.Tensor, entries: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Return argmin_j (offset_j − z·entry_j) (n,) int64 for latents (n, D), entries (K, D) and offsets (K,).

    For float32 on a CPU, the native library finds the codes if there is one.
    """
    if getattr(torch.compiler, "is_exporting", bool)():  # in one piece: a program for any number of sites has no loop
        return torch.addmm(offsets, latents, entries.T, alpha=-1).argmin(1)
    library = find_library(latents, entries)
    if library:
        return search(library, latents, entries, offsets)
    tile = tile_for(latents.device)
    entries_at_once = min(tile.entries, len(entries))
    pieces = latents.split(max(1, tile.pairs // entries_at_once))
    return torch.cat([_search(sites, entries, offsets, entries_at_once) for sites in pieces])


def tile_for(device: torch.device) -> Tile:
    """Return how much the search handles at once on this device."""
    return TILES.get(device.type, TILES["cuda"])


def _search(sites: torch.Tensor, entries: torch.Tensor, offsets: torch.Tensor, entries_at_once: int) -> torch.Tensor:
    """Find each site's entry with the smallest offset − z·entry, one group of entries after another."""
    for first in range(0, len(entries), entries_at_once):
        group = slice(first, first + entries_at_once)
        gaps, found = _least(_product(sites, entries[group], offsets[group]))
        if first == 0:
            least, codes = gaps, found
        else:
            closer = gaps < least
            least, codes = torch.where(closer, gaps, least), torch.where(closer, found + first, codes)
    return codes


def _product(sites: torch.Tensor, entries: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Return offset − z·entry (n, K) for sites (n, D), entries (K, D) and offsets (K,)."""
    if sites.device.type != "cpu" or not len(sites):
        return torch.addmm(offsets, sites, entries.T, alpha=-1)
    # as a 1×1 convolution of n sites: its kernels are up to twice as fast as those of a matrix product
    as_image = sites.reshape(1, len(sites), 1, sites.shape[1]).permute(0, 3, 1, 2)
    gaps = F.conv2d(as_image, -entries[:, :, None, None], offsets)
    return gaps.permute(0, 2, 3, 1).view(len(sites), len(entries))


def _least(gaps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest number (n,) in each row of gaps (n, K), and its index (n,).

    The minimum is taken first over `PARTS` stretches of the row side by side, which processors compute many at a time,
    then over the rest: a minimum with its index, computed one at a time, is taken over K / PARTS and PARTS values only.
    """
    parts = math.gcd(gaps.shape[1], PARTS)
    stretches = gaps.unflatten(1, (parts, -1))  # (n, parts, K / parts)
    least, column = stretches.amin(1).min(1)
    in_column = stretches[torch.arange(len(gaps), device=gaps.device), :, column]  # (n, parts)
    part = in_column.min(1)[1]  # and not argmin, which takes longer on a CPU
    return least, part * stretches.shape[2] + column


def _euclidean(codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # with e = c + d, c the mean entry: ‖z − e‖² = ‖z − c‖² + 2 (½‖d‖² + c·d − z·d), and ‖z − c‖² is the same for every
    # entry. Without c the terms would cancel, and codes would be wrong, if all latents lie far from the origin.
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
