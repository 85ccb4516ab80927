"""The nearest codebook entry, and the gradient that passes through it.

Shapes: n sites, D embedding_dim, K codebook entries.
"""

import math
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
PARTS = 16  # of a row of gaps, that are compared side by side
TIE = 1e-5  # what float32 leaves open, as a share of ‖z‖ · max ‖e‖


class Nearest(NamedTuple):
    """What a search finds for n sites."""

    codes: torch.Tensor  # (n,) int64
    tied: torch.Tensor | None  # (n,) bool: another entry is as near to within `TIE`; None where that was not asked


def nearest_codes(latents: torch.Tensor, codebook: torch.Tensor, distance: str = "euclidean") -> torch.Tensor:
    """k(x) = argmin_j ‖z_e(x) − e_j‖ (Eq. 1): latents (n, D), codebook (K, D) → codes (n,) int64.

    `distance` is a name in `DISTANCES`.
    """
    return find_nearest(latents, codebook, distance).codes


def find_nearest(
    latents: torch.Tensor, codebook: torch.Tensor, distance: str = "euclidean", mark_ties: bool = False
) -> Nearest:
    """The same, and at which sites rounding decides, if `mark_ties`."""
    entries, offsets = DISTANCES[distance](codebook)
    tile = tile_for(latents.device)
    entries_at_once = min(tile.entries, len(codebook))
    pieces = latents.split(max(1, tile.pairs // entries_at_once))
    found = [_search(sites, entries, offsets, entries_at_once, mark_ties) for sites in pieces]
    codes = torch.cat([codes for codes, _ in found])
    if not mark_ties:
        return Nearest(codes, None)
    open_to_rounding = TIE * latents.norm(dim=1) * entries.norm(dim=1).max()
    return Nearest(codes, torch.cat([lead for _, lead in found]) <= open_to_rounding)


def tile_for(device: torch.device) -> Tile:
    """How much the search looks at together on this device."""
    return TILES.get(device.type, TILES["cuda"])


def _search(
    sites: torch.Tensor, entries: torch.Tensor, offsets: torch.Tensor, entries_at_once: int, mark_ties: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The smallest offset − z·entry of some sites, over one group of entries after the other, and the second's lead."""
    for first in range(0, len(entries), entries_at_once):
        group = slice(first, first + entries_at_once)
        gaps, found, seconds = _least(_product(sites, entries[group], offsets[group]), mark_ties)
        if first == 0:
            least, codes, second = gaps, found, seconds
        else:
            if mark_ties:
                second = torch.minimum(torch.maximum(gaps, least), torch.minimum(second, seconds))
            closer = gaps < least
            least, codes = torch.where(closer, gaps, least), torch.where(closer, found + first, codes)
    return codes, second - least if mark_ties else None


def _product(sites: torch.Tensor, entries: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """offset − z·entry: sites (n, D), entries (K, D), offsets (K,) → (n, K)."""
    if sites.device.type != "cpu" or not len(sites):
        return torch.addmm(offsets, sites, entries.T, alpha=-1)
    # as a 1×1 convolution of n sites: its kernels are up to twice as fast as those of a matrix product
    as_image = sites.reshape(1, len(sites), 1, sites.shape[1]).permute(0, 3, 1, 2)
    gaps = F.conv2d(as_image, -entries[:, :, None, None], offsets)
    return gaps.permute(0, 2, 3, 1).view(len(sites), len(entries))


def _least(gaps: torch.Tensor, with_second: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Of each row of gaps (n, K) the smallest (n,), where it is (n,), and the second smallest (n,).

    First over `PARTS` stretches of the row side by side, which processors do many at a time, then over what is left: a
    smallest value with its index, which they do one at a time, is looked for among K / PARTS and PARTS only.
    """
    parts = math.gcd(gaps.shape[1], PARTS)
    stretches = gaps.unflatten(1, (parts, -1))  # (n, parts, K / parts)
    over_parts = stretches.amin(1)
    least, column = over_parts.min(1)
    in_column = stretches[torch.arange(len(gaps), device=gaps.device), :, column]  # (n, parts)
    part = in_column.min(1)[1]  # and not argmin, which takes longer on a CPU
    codes = part * stretches.shape[2] + column
    if not with_second:
        return least, codes, None
    others = [
        values.scatter(1, index[:, None], torch.inf).amin(1)
        for values, index in ((over_parts, column), (in_column, part))
    ]
    return least, codes, torch.minimum(*others)


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
