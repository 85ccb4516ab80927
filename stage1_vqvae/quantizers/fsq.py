"""Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505): each number of a latent is rounded to a level.

Shapes: b batch, D embedding_dim, *sites one to three axes of the code grid, K num_embeddings.
"""

import math
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import nn

from codegrid.codes import Codes, Grid, Layout, Losses, Moment, Sides
from codegrid.limits import make_options
from codegrid.protocols import Quantized
from codegrid.stage1_vqvae.options import FSQOptions

from .estimators import StraightThrough

MAX_LISTED = 2**20  # codes whose vectors are listed
MARGIN = 1e-3  # ε, as in the reference implementation: large latents come close to the outer levels, never past them


class FSQuantizer(nn.Module):
    """Finite scalar quantization: nothing is learnt here, so there is no codebook and no loss.

    Args:
        fsq_levels: the number of levels L_i of each number of a latent. There are D of them, and K is their product.

    Raises `InputError` if an option is unknown or a value is out of range.

    Worked example: latents (8, 3, 7, 7) with fsq_levels=(8, 8, 8)
    → vectors (8, 3, 7, 7) between -1 and 1, codes ((8, 7, 7),) in 0 ... 511.
    """

    options: ClassVar[type] = FSQOptions
    levels: torch.Tensor  # (D,) int64
    places: torch.Tensor  # (D,) int64
    unit: torch.Tensor  # ()

    def __init__(self, **options: Any) -> None:
        super().__init__()
        levels = make_options(self.options, options, type(self).__name__).fsq_levels
        self.config: dict[str, Any] = {"fsq_levels": list(levels)}
        self.num_embeddings, self.embedding_dim = math.prod(levels), len(levels)
        places = [math.prod(levels[:axis]) for axis in range(len(levels))]  # a code's digits, the lowest first
        # whole numbers, which half precision leaves unchanged; they follow from the options
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.register_buffer("unit", torch.ones((), dtype=torch.float32), persistent=False)  # has the model's type

    def layout(self, sites: Sides) -> Layout:
        """Return the one grid of latents with these sites."""
        return (Grid(sites, self.num_embeddings),)

    def forward(self, latents: torch.Tensor, moment: Moment | None = None) -> Quantized:
        """Return vectors and codes of latents (b, D, *sites); the gradient passes the bound, but skips the rounding."""
        with torch.autocast(latents.device.type, enabled=False):
            points = self._bound(latents)
            digits = self._round(points)
            vectors = StraightThrough.apply(points / (self.levels // 2), self._vectors(digits))
            vectors = rearrange(vectors, "b ... d -> b d ...").to(self.unit.dtype)
            return Quantized(vectors, (self._codes(digits),), Losses({}, {}))

    @torch.no_grad()
    def encode(self, latents: torch.Tensor) -> Codes:
        """Return the codes of latents (b, D, *sites), one tensor (b, *sites) int64."""
        with torch.autocast(latents.device.type, enabled=False):
            return (self._codes(self._round(self._bound(latents))),)

    def look_up(self, codes: Codes) -> torch.Tensor:
        """Return the vectors (b, D, *sites) of codes, one tensor (b, *sites)."""
        (only,) = codes
        digits = (only[..., None] // self.places % self.levels).to(self._exact)
        return rearrange(self._vectors(digits), "b ... d -> b d ...").to(self.unit.dtype)

    def entries(self, grid: int) -> torch.Tensor | None:
        """Return the vectors (K, D) of all codes; None if there are more than 2²⁰."""
        if self.num_embeddings > MAX_LISTED:
            return None
        return self.look_up((torch.arange(self.num_embeddings, device=self.levels.device),))

    def bound(self, latents: torch.Tensor) -> torch.Tensor:
        """Return bounded latents (b, D, *sites), scaled like the vectors but not rounded, with their gradient."""
        return rearrange(self._bound(latents) / (self.levels // 2), "b ... d -> b d ...")

    def after_step(self, step: int, seed: int, *purpose: str | int) -> None:
        """Do nothing: there is no codebook to move."""

    @property
    def _exact(self) -> torch.dtype:
        # in half precision codes would be wrong
        return torch.promote_types(self.unit.dtype, torch.float32)

    def _bound(self, latents: torch.Tensor) -> torch.Tensor:
        """Return tanh(z + s) · (L − 1)(1 − ε)/2 − o, with o = ½ for even L: (b, D, *sites) → (b, *sites, D)."""
        levels = self.levels.to(self._exact)
        half, offset = (levels - 1) * ((1 - MARGIN) / 2), (1 - levels % 2) / 2
        # s brings 0 to 0: it is artanh(o / half), for which the paper has tan. Of two levels, neither is in the middle
        shift = torch.where(levels > 2, torch.atanh(offset / half), 0.0)
        # in the memory format of `look_up`: a convolution of another one rounds to other bits
        points = rearrange(latents.to(self._exact), "b d ... -> b ... d").contiguous()
        return torch.tanh(points + shift) * half - offset

    def _round(self, points: torch.Tensor) -> torch.Tensor:
        """Return the digits of bounded latents (b, *sites, D): 0 ... L - 1, as floats."""
        return points.detach().round() + self.levels // 2

    def _vectors(self, digits: torch.Tensor) -> torch.Tensor:
        """Return the levels, about from -1 to 1, of digits (b, *sites, D)."""
        middle = self.levels // 2
        return (digits - middle) / middle

    def _codes(self, digits: torch.Tensor) -> torch.Tensor:
        """Return the codes (b, *sites) int64 of digits (b, *sites, D), summed as whole numbers: floats would round."""
        return (digits.long() * self.places).sum(-1)
