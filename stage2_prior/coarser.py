"""Conditioning on the codes of coarser grids: their checks, and the network that turns them into features of each site.

Shapes: b batch, h w the prior's own grid, *shape the sites of a coarser one, s condition_channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.codes import HIDDEN, Codes, Layout, Sides
from codegrid.errors import InputError
from codegrid.noise import Noise

from .options import CoarserOptions
from .site_codes import embed


class Conditioning(NamedTuple):
    """Everything besides codes that the gates depend on."""

    rows: Tensor | None = None  # (b,) of the tables of labels
    site_map: Tensor | None = None  # (b, s, h, w) from the coarser grids and features; of features alone (b, s, 1, 1)
    words: Any = None  # of texts, as a network that takes them encodes them

    def at_all_sites(self, shape: Sides) -> Conditioning:
        """Return this with the map of a single site repeated at all sites of a grid (h, w)."""
        return self if self.site_map is None else self._replace(site_map=self.site_map.expand(-1, -1, *shape))


def site_map_of(
    network: nn.Module | None, coarser: Codes, of_features: nn.Module | None, features: Tensor | None
) -> Tensor | None:
    """Return the sum (b, s, h, w) of what two networks make of coarser codes and of features, or None without any."""
    maps = [network(coarser)] if network is not None else []
    if of_features is not None:
        maps.append(of_features(features))
    return sum(maps[1:], maps[0]) if maps else None


def added_by(of_rows: nn.Module | None, of_map: nn.Module | None, given: Conditioning) -> Tensor | None:
    """Return what conditions add to the features of a layer, (b, c, 1, 1) or (b, c, h, w), or None without any.

    Args:
        of_rows: a table of embeddings of c numbers, if there are labels.
        of_map: a 1×1 convolution to c channels, if there are coarser grids.
        given: the conditions.
    """
    of_label = None if of_rows is None else of_rows(given.rows)[:, :, None, None]
    if of_map is None:
        return of_label
    of_sites: Tensor = of_map(given.site_map)
    return of_sites if of_label is None else of_sites + of_label


class CoarserNetwork(nn.Module):
    """A condition network: the codes of coarser grids → features (b, s, h, w) at the sites of a finer one.

    From the coarsest grid on, the codes are embedded, pass through residual blocks, and are enlarged to the next grid,
    whose codes join them. Nothing is masked: each site may depend on every coarser code. A sampler needs the features
    once per image.

    Args:
        layout: the coarser grids, coarse to fine.
        shape: the finer grid's (h, w).
        options: the sizes.

    Raises `InputError` if a grid, or the finer one, is not of two axes.
    """

    def __init__(self, layout: Layout, shape: Sides, options: CoarserOptions) -> None:
        super().__init__()
        for grid in layout:
            if len(grid.shape) != 2:
                raise InputError(f"`given_layout` with {grid}: this prior can only be conditioned on grids (h, w)")
        if len(shape) != 2:
            raise InputError("`given_grids`: only a prior of grids (h, w) can be conditioned on coarser ones")
        channels = options.condition_channels
        # row 0 stands for a hidden code, row k + 1 for code k: so a larger codebook adds rows at the end
        self.tables = nn.ModuleList(nn.Embedding(grid.num_embeddings + 1, channels) for grid in layout)
        sides = [grid.shape for grid in layout]
        # for each size of grids: its sides, and how many grids have it
        self.scales = [(shape, len(list(grids))) for shape, grids in groupby(sides)]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                *(ResidualBlock(channels) for _ in range(options.condition_blocks)),
            )
            for _ in self.scales
        )
        self.shape = shape
        # a site learns from its neighbours where in an enlarged site it lies
        self.last = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, codes: Codes) -> Tensor:
        """Turn codes (b, *shape) of each coarser grid, HIDDEN where unknown, into features (b, s, h, w)."""
        rows = tuple(grid - HIDDEN for grid in codes)
        features, first = None, 0
        for (shape, count), blocks in zip(self.scales, self.blocks, strict=True):
            own = slice(first, first + count)
            joined = embed(self.tables[own], rows[own])
            if features is not None:
                joined = joined + enlarge(features, shape)
            features, first = blocks(joined), own.stop
        assert features is not None  # there is at least one grid
        return self.last(enlarge(features, self.shape))


class ResidualBlock(nn.Module):
    """A residual block: x + (ReLU, 3×3, ReLU, 1×1)(x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block, (b, s, h, w) → (b, s, h, w)."""
        return x + self.layers(x)


def enlarge(features: Tensor, shape: Sides) -> Tensor:
    """Enlarge features (b, s, *sites) to another grid's sides, each site taking the features of the one that covers it.

    7 sites from 4 are four blocks of 2 with the last one cropped, since 7 sites, padded to 8, make 4. Sides that no
    whole factor explains, such as 5 from 4, are divided evenly.
    """
    whole = [_uncropped(*sides) for sides in zip(features.shape[2:], shape, strict=True)]
    own = (slice(None), slice(None), *map(slice, shape))
    return F.interpolate(features, whole, mode="nearest-exact")[own]


def _uncropped(coarse: int, fine: int) -> int:
    """Return the length of `coarse` blocks of equal length that cover `fine` sites, if the last one is needed."""
    factor = -(-fine // coarse)
    return coarse * factor if -(-fine // factor) == coarse else fine


def check_coarser(codes: Codes, layout: Layout, grids: Sequence[int], batch_size: int, may_hide: bool) -> None:
    """Raise `InputError` if grids are missing, or codes are of another shape or out of range.

    Args:
        codes: of each grid, (b, *shape).
        layout: the grids that a prior must be given.
        grids: their numbers in the tokenizer's layout.
        batch_size: b.
        may_hide: whether the prior was also trained with hidden codes.
    """
    if len(codes) != len(layout):
        numbers = ", ".join(map(str, grids))
        raise InputError(f"`codes` of {len(codes)} coarser grids, but this prior needs the grids {numbers}")
    for given, grid, number in zip(codes, layout, grids, strict=True):
        shape = (batch_size, *grid.shape)
        if tuple(given.shape) != shape:
            raise InputError(f"`codes` of shape {tuple(given.shape)} for grid {number}, but {shape} is needed")
        if given.numel():
            low, high = torch.stack(given.aminmax()).tolist()  # waits for a GPU once, not twice
            if low < HIDDEN or high >= grid.num_embeddings:
                wrong = int(low if low < HIDDEN else high)
                most = grid.num_embeddings - 1
                raise InputError(f"`codes`: code {wrong} for grid {number}, but its codes are 0 to {most}")
            if low == HIDDEN and not may_hide:
                raise InputError(
                    f"`codes`: hidden codes for grid {number}, but this prior was only trained with all of them: give "
                    "them, or train it with `coarse_dropout` 0.05"
                )


def hide_some(codes: Codes, share: float, noise: Noise) -> Codes:
    """Return codes (b, *shape) of which a share, drawn at random, is HIDDEN."""
    hidden = [noise.uniforms(f"coarse dropout {i}", *grid.shape[1:]) < share for i, grid in enumerate(codes)]
    return tuple(grid.masked_fill(mask.to(grid.device), HIDDEN) for grid, mask in zip(codes, hidden, strict=True))
