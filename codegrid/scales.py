"""Sums of vectors over grids of growing scales, as VAR makes them (Tian et al. 2024, arXiv 2404.02905).

The quantizer adds them up when it encodes and when it decodes, and a prior when it is shown the scales before the next
one. All need the same bits, so all call `refine`.

Shapes: b batch, D embedding_dim, *sites one to three axes of the finest grid, *shape those of a coarser one, S scales,
p convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .codes import Codes, Layout, Sides
from .errors import InputError


class Phi(NamedTuple):
    """Convolutions φ(x) = weight ∗ x + bias that follow the enlarging; each serves some scales, coarse ones first."""

    weight: Tensor  # (p, D, D, 3, 3)
    bias: Tensor  # (p, D)

    def of_scale(self, number: int, count: int) -> tuple[Tensor, Tensor]:
        """Return weight (D, D, 3, 3) and bias (D,) of one of `count` scales."""
        which = number * len(self.bias) // count
        return self.weight[which], self.bias[which]


def shapes_of(sites: Sides, scales: Sequence[int]) -> list[Sides]:
    """Return the shape of each scale: its side is to the last scale as a grid's side is to that of `sites`.

    Examples:
        >>> shapes_of((8, 4), (1, 2, 4, 8))
        [(1, 1), (2, 1), (4, 2), (8, 4)]
    """
    last = scales[-1]
    return [tuple(max(1, (2 * side * scale + last) // (2 * last)) for side in sites) for scale in scales]


def shrink(vectors: Tensor, shape: Sides) -> Tensor:
    """Average vectors (b, D, *sites) over the part of the grid that each site of a coarser one covers."""
    return vectors if vectors.shape[2:] == shape else F.interpolate(vectors, shape, mode="area")


def enlarge(vectors: Tensor, sites: Sides) -> Tensor:
    """Enlarge vectors (b, D, *shape) to a finer grid by cubic interpolation along each axis."""
    if vectors.ndim == 5:
        d, height, width = vectors.shape[1], *vectors.shape[3:]
        times = rearrange(vectors, "b d t h w -> b (d h w) 1 t")
        times = _cubic(times, (1, sites[0]))
        vectors = rearrange(times, "b (d h w) 1 t -> b d t h w", d=d, h=height, w=width)
    plane = (1, *sites)[-2:]
    return _in_planes(vectors, lambda planes: _cubic(planes, plane))


def refine(total: Tensor | None, vectors: Tensor, number: int, shapes: Sequence[Sides], phi: Phi) -> Tensor:
    """Add one scale to the sum (b, D, *sites) of those before it, if any: f̂_k = f̂_{k−1} + φ_k(enlarged vectors).

    Args:
        vectors: the entries (b, D, *shape) of scale `number`.
        shapes: of all scales; the last one is *sites.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        exact = torch.promote_types(vectors.dtype, torch.float32)  # half precision would lose the finer scales
        weight, bias = (tensor.to(exact) for tensor in phi.of_scale(number, len(shapes)))
        larger = enlarge(vectors.to(exact), shapes[-1])
        added = _in_planes(larger, lambda planes: F.conv2d(planes, weight, bias, padding=1))
        return added if total is None else total + added


def add_up(vectors: Sequence[Tensor], shapes: Sequence[Sides], phi: Phi) -> Tensor:
    """Return the sum (b, D, *sites) of the entries (b, D, *shape) of the first scales, one or more."""
    total = None
    for number, of_scale in enumerate(vectors):
        total = refine(total, of_scale, number, shapes, phi)
    return cast(Tensor, total)


def tables_of_grids(tables: Mapping[str, Tensor], grids: Sequence[int]) -> dict[str, Tensor]:
    """Return the part of `CodeDataset.tables()` that is about some grids, in the form of codes that have no others.

    Only the grids of a whole level of a hierarchy have such a part; for any others all tables are returned.
    """
    prefix = f"grids.{grids[0]}-{grids[-1]}."
    own = {name.removeprefix(prefix): table for name, table in tables.items() if name.startswith(prefix)}
    if not own:
        return dict(tables)
    names = {f"entries.{number}": f"entries.{grid}" for number, grid in enumerate(grids)}
    return own | {name: tables[held] for name, held in names.items() if held in tables}


class Scales(NamedTuple):
    """Vectors of the codes of S scales, and how they add up: what a quantizer's tables hold."""

    entries: Sequence[Tensor]  # (K, D) of each scale
    phi: Phi
    shapes: Sequence[Sides]  # of each scale

    @classmethod
    def of_tables(cls, tables: Mapping[str, Tensor], layout: Layout) -> Scales:
        """Return the scales of `CodeDataset.tables()`: `entries.0` and so on, `phi.weight` and `phi.bias`.

        Raises `InputError` if these are not the tables of such grids.
        """
        if not {"phi.weight", "phi.bias"} <= tables.keys():
            levels = sorted({name.split(".")[1].replace("-", " to ") for name in tables if name.endswith("phi.weight")})
            if levels:
                raise InputError(f"these are not the scales of one level: those are the grids {' or '.join(levels)}")
            raise InputError("these codes have no scales: only the multiscale quantizer makes codes that have")
        names = [f"entries.{number}" for number in range(len(layout))]
        found = [name for name in tables if name.startswith("entries.")]
        if set(found) != set(names):
            raise InputError(f"these codes have {len(found)} scales, not {len(layout)}: they only add up together")
        entries, phi = [tables[name] for name in names], Phi(tables["phi.weight"], tables["phi.bias"])
        p, dim = len(phi.bias), entries[0].shape[-1]
        sizes = [tuple(table.shape) for table in (*entries, *phi)]
        needed = [*((grid.num_embeddings, dim) for grid in layout), (p, dim, dim, 3, 3), (p, dim)]
        if not p or sizes != needed:
            raise InputError("the tables of these codes do not fit each other: export the codes again")
        return cls(entries, phi, [grid.shape for grid in layout])

    def add(self, total: Tensor | None, codes: Tensor, number: int) -> Tensor:
        """Add the codes (b, *shape) int64 of scale `number` to the sum (b, D, *sites) of those before it, if any."""
        vectors = rearrange(F.embedding(codes, self.entries[number]), "b ... d -> b d ...")
        return refine(total, vectors, number, self.shapes, self.phi)

    def so_far(self, codes: Codes) -> Tensor:
        """Return what a prior sees before it draws the next scale: the sum of those so far, in the next one's shape.

        Args:
            codes: (b, *shape) int64 of the first n scales.

        Returns (b, D, *shape) of scale n; of all S scales the vectors (b, D, *sites) that the decoder sees.

        Raises `InputError` if there is no scale to show.
        """
        if not codes:
            raise InputError("`codes` of no grid: nothing comes before the first scale")
        total = None
        for number, of_scale in enumerate(codes):
            total = self.add(total, of_scale, number)
        return shrink(cast(Tensor, total), self.shapes[min(len(codes), len(self.shapes) - 1)])


def _in_planes(vectors: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change (b, D, *sites) as planes (n, D, h, w): one axis is a row, and of three each frame is a plane."""
    if vectors.ndim == 3:
        return change(vectors[:, :, None]).squeeze(2)
    if vectors.ndim == 5:
        count, time = len(vectors), vectors.shape[2]
        planes = change(rearrange(vectors, "b d t h w -> (b t) d h w"))
        return rearrange(planes, "(b t) d h w -> b d t h w", b=count, t=time)
    return change(vectors)


def _cubic(planes: Tensor, size: Sides) -> Tensor:
    return planes if planes.shape[2:] == size else F.interpolate(planes, size, mode="bicubic", align_corners=False)
