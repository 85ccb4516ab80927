"""Rotations of queries and keys by the places of their sites (Su et al. 2021, arXiv 2104.09864), axis by axis.

Shapes: n positions, d_h width of a head, *shape the sites of a grid.
"""

import math

import torch
from torch import Tensor

from codegrid.codes import Sides

SLOWEST = 100.0  # sites after which the slowest pair of rotated channels has turned by one radian


def site_coordinates(shape: Sides, finest: Sides | None = None, device: torch.device | None = None) -> Tensor:
    """Return the coordinates (n, axes) float64 of all sites in raster order, in sites of the `finest` grid, if given.

    The middle of a site of a coarser grid is the middle of the sites that it covers.
    """
    sides = zip(shape, shape if finest is None else finest, strict=True)
    axes = [(torch.arange(own, dtype=torch.float64, device=device) + 0.5) * (fine / own) - 0.5 for own, fine in sides]
    return torch.cartesian_prod(*axes).view(math.prod(shape), len(shape))


def rotation_at(coordinates: Tensor, head_width: int, like: Tensor) -> Tensor:
    """Return cosines and sines (2, n, d_h/2) by which `rotate` turns pairs of channels, for coordinates (n, axes).

    The axes take turns in the pairs, from the fastest to the slowest.
    """
    axes, pairs = coordinates.shape[1], head_width // 2
    turns = torch.arange(pairs, device=coordinates.device)
    speeds = SLOWEST ** -((turns // axes).double() * axes / max(1, pairs))
    angles = coordinates[:, turns % axes] * speeds
    return torch.stack([angles.cos(), angles.sin()]).to(like)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of channels of x (..., n, d_h) by its angle at each position."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = rotation.to(x.dtype)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
