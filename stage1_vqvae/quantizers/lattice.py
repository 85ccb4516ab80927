"""Quantizers whose entries are a fixed lattice: each number of a latent, by itself, becomes one of a few values.

Shapes: b batch, D embedding_dim, *sites one to three axes of the code grids, K codes of a grid.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import nn

from codegrid.codes import Codes, Layout, Losses, Moment, Sides
from codegrid.protocols import Quantized

from .estimators import StraightThrough
from .factors import Factors

MAX_LISTED = 2**20  # codes whose vectors are listed


class LatticeQuantizer(nn.Module):
    """Quantizer without a codebook. A subclass says how numbers become digits, and digits become numbers.

    Args:
        levels: how many values each of the D numbers can take.
        num_factors: how many grids share the code; None for as few as have at most 2¹² codes each.

    Raises `InputError` if there are fewer numbers than grids.
    """

    config: dict[str, Any]
    unit: torch.Tensor  # ()

    def __init__(self, levels: Sequence[int], num_factors: int | None) -> None:
        super().__init__()
        self.factors = Factors(levels, num_factors)
        self.num_embeddings, self.embedding_dim = math.prod(levels), len(levels)
        self.register_buffer("unit", torch.ones((), dtype=torch.float32), persistent=False)  # has the model's type

    def layout(self, sites: Sides) -> Layout:
        """Return the grids of latents with these sites, one for each factor of the code."""
        return self.factors.layout(sites)

    def forward(self, latents: torch.Tensor, moment: Moment | None = None) -> Quantized:
        """Return vectors, codes and losses of latents (b, D, *sites); the gradient skips the rounding, to `bound`."""
        with torch.autocast(latents.device.type, enabled=False):
            points = self._points(latents)
            digits = self._round(points)
            bounded, vectors = self._scale(points), self._vectors(digits)
            losses = self._losses(bounded, vectors, is_joint=moment is not None)
            vectors = rearrange(StraightThrough.apply(bounded, vectors), "b ... d -> b d ...")
            return Quantized(vectors.to(self.unit.dtype), self.factors.codes(digits.long()), losses)

    @torch.no_grad()
    def encode(self, latents: torch.Tensor) -> Codes:
        """Return the codes of latents (b, D, *sites), one tensor (b, *sites) int64 for each grid."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.factors.codes(self._round(self._points(latents)).long())

    def look_up(self, codes: Codes) -> torch.Tensor:
        """Return the vectors (b, D, *sites) of codes, one tensor (b, *sites) for each grid."""
        vectors = self._vectors(torch.stack(self.factors.digits(codes), -1).to(self._exact))
        return rearrange(vectors, "b ... d -> b d ...").to(self.unit.dtype)

    def entries(self, grid: int) -> torch.Tensor | None:
        """Return the vectors (K, D) of all codes of a grid; None if there are more than 2²⁰.

        They are 0 except in the numbers that the grid's codes stand for, so that the vectors of all grids add up.
        """
        size, axes = self.factors.sizes[grid], self.factors.axes[grid]
        if size > MAX_LISTED:
            return None
        every = torch.arange(size, device=self.unit.device)
        vectors = self.look_up((every,) * len(self.factors.groups))
        own = torch.zeros_like(vectors)
        own[:, axes] = vectors[:, axes]
        return own

    def bound(self, latents: torch.Tensor) -> torch.Tensor:
        """Return latents (b, D, *sites), scaled like the vectors but not rounded, with their gradient."""
        return rearrange(self._scale(self._points(latents)), "b ... d -> b d ...")

    def after_step(self, step: int, seed: int, *purpose: str | int) -> None:
        """Do nothing: there is no codebook to move."""

    @property
    def _exact(self) -> torch.dtype:
        # in half precision codes would be wrong
        return torch.promote_types(self.unit.dtype, torch.float32)

    def _points(self, latents: torch.Tensor) -> torch.Tensor:
        """Return latents (b, D, *sites) as (b, *sites, D), ready to be rounded."""
        # in the memory format of `look_up`: a convolution of another one rounds to other bits
        return rearrange(latents.to(self._exact), "b d ... -> b ... d").contiguous()

    def _scale(self, points: torch.Tensor) -> torch.Tensor:
        """Return points (b, *sites, D) in the scale of the vectors."""
        return points

    def _round(self, points: torch.Tensor) -> torch.Tensor:
        """Return the digits of points (b, *sites, D): 0 ... L - 1, as floats."""
        raise NotImplementedError

    def _vectors(self, digits: torch.Tensor) -> torch.Tensor:
        """Return the vectors of digits (b, *sites, D), in the same shape."""
        raise NotImplementedError

    def _losses(self, points: torch.Tensor, vectors: torch.Tensor, is_joint: bool) -> Losses:
        """Return the losses of scaled points and vectors (b, *sites, D); jointly with all processes in training."""
        return Losses({}, {})
