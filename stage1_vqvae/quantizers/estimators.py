"""How the gradient at the vectors reaches the latents, from which the choice of a code has cut it off.

Shapes: b batch, D embedding_dim, *sites one to three axes of the code grid.
"""

from collections.abc import Callable
from typing import Any

import torch

TINY = 1e-12  # a length that counts as 0
OPPOSITE = 1e-10  # ‖u + v‖² of two directions that are opposite except for rounding


class StraightThrough(torch.autograd.Function):
    """Function that returns z_q, bit for bit, and passes its gradient to z_e unchanged; the codebook gets none.

    The usual z + (q − z).detach() is off by a rounding error in the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, latents: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Return the vectors unchanged."""
        return vectors.view_as(vectors)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Pass the gradient to the latents only, unchanged."""
        return gradient, None


class Rotation(torch.autograd.Function):
    """Function that returns z_q, bit for bit, with the gradient of a rotated and scaled z_e.

    The rotation trick (Fifty et al. 2024, arXiv 2410.06424): with u = z_e / ‖z_e‖, v = z_q / ‖z_q‖ and
    w = (u + v) / ‖u + v‖, z_q = (‖z_q‖ / ‖z_e‖) R z_e with R = I − 2 w wᵀ + 2 v uᵀ. R and the ratio are constants.
    Where z_e is 0, or opposite to z_q, there is no such R: the gradient goes straight through.
    """

    @staticmethod
    def forward(ctx: Any, latents: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Return the vectors (b, D, *sites) unchanged."""
        ctx.save_for_backward(latents, vectors)
        return vectors.view_as(vectors)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Pass (‖z_q‖ / ‖z_e‖) Rᵀ g = (‖z_q‖ / ‖z_e‖) (g − 2 w (w·g) + 2 u (v·g)) to the latents only."""
        latents, vectors = ctx.saved_tensors
        vectors = vectors.to(latents.dtype)
        length, wanted = latents.norm(dim=1, keepdim=True), vectors.norm(dim=1, keepdim=True)
        u, v = latents / length.clamp_min(TINY), vectors / wanted.clamp_min(TINY)
        w = u + v  # times ‖u + v‖
        square = _dot(w, w)
        turned = gradient - w * (2 * _dot(w, gradient) / square) + u * (2 * _dot(v, gradient))
        return torch.where((length > TINY) & (square > OPPOSITE), turned * (wanted / length), gradient), None


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the dot product (b, 1, *sites) of the vectors at each site."""
    return (a * b).sum(1, keepdim=True)


# name → function of latents and vectors (b, D, *sites) that returns the vectors, bit for bit, with a gradient
ESTIMATORS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "straight-through": StraightThrough.apply,
    "rotation": Rotation.apply,
}
