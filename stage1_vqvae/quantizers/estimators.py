"""How the gradient at the vectors reaches the latents, which rounding to codes has cut off from them."""

from typing import Any

import torch


class StraightThrough(torch.autograd.Function):
    """z_q forward, bit for bit; the gradient of z_q goes to z_e unchanged, and none to the codebook.

    The usual z + (q − z).detach() is off by a rounding error in the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, latents: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Return the vectors as they are."""
        return vectors.view_as(vectors)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient as it is, to the latents alone."""
        return gradient, None
