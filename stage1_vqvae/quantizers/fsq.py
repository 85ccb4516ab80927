"""Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505): each number of a latent is rounded to a level.

Shapes: b batch, D embedding_dim, *sites one to three axes of the code grids, K num_embeddings.
"""

from typing import Any, ClassVar

import torch

from codegrid.limits import make_options
from codegrid.stage1_vqvae.options import FSQOptions

from .lattice import LatticeQuantizer

MARGIN = 1e-3  # ε, as in the reference implementation: large latents come close to the outer levels, never past them


class FSQuantizer(LatticeQuantizer):
    """Finite scalar quantization: nothing is learnt here, so there is no codebook and no loss.

    Args:
        fsq_levels: the number of levels L_i of each number of a latent. There are D of them, and K is their product.
        num_factors: grids that share the code, each with some of the levels; by default as few as have at most 2¹²
            codes each.

    Raises `InputError` if an option is unknown or a value is out of range.

    Worked example: latents (8, 3, 7, 7) with fsq_levels=(8, 8, 8)
    → vectors (8, 3, 7, 7) between -1 and 1, codes ((8, 7, 7),) in 0 ... 511.
    """

    options: ClassVar[type] = FSQOptions
    levels: torch.Tensor  # (D,) int64

    def __init__(self, **options: Any) -> None:
        settings = make_options(self.options, options, type(self).__name__)
        super().__init__(settings.fsq_levels, settings.num_factors)
        self.config = {"fsq_levels": list(settings.fsq_levels), "num_factors": len(self.factors.groups)}
        # whole numbers, which half precision leaves unchanged; they follow from the options
        self.register_buffer("levels", torch.tensor(settings.fsq_levels), persistent=False)

    def _points(self, latents: torch.Tensor) -> torch.Tensor:
        """Return tanh(z + s) · (L − 1)(1 − ε)/2 − o, with o = ½ for even L: (b, D, *sites) → (b, *sites, D)."""
        levels = self.levels.to(self._exact)
        half, offset = (levels - 1) * ((1 - MARGIN) / 2), (1 - levels % 2) / 2
        # s brings 0 to 0: it is artanh(o / half), for which the paper has tan. Of two levels, neither is in the middle
        shift = torch.where(levels > 2, torch.atanh(offset / half), 0.0)
        return torch.tanh(super()._points(latents) + shift) * half - offset

    def _scale(self, points: torch.Tensor) -> torch.Tensor:
        """Scale points (b, *sites, D) whose levels are 1 apart to about -1 to 1."""
        return points / (self.levels // 2)

    def _round(self, points: torch.Tensor) -> torch.Tensor:
        """Return the digits of bounded latents (b, *sites, D): 0 ... L - 1, as floats."""
        return points.detach().round() + self.levels // 2

    def _vectors(self, digits: torch.Tensor) -> torch.Tensor:
        """Return the levels, about from -1 to 1, of digits (b, *sites, D)."""
        middle = self.levels // 2
        return (digits - middle) / middle
