"""The nearest codebook entry, and the gradient that passes through it.

Shapes: n sites, D embedding_dim, K codebook entries.
"""

import torch

# Sites are searched in pieces, so that the matrix of distances (sites × K) is never held whole: 2**22 floats are 16 MB.
DISTANCES_AT_ONCE = 2**22


def nearest_codes(latents: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """k(x) = argmin_j ‖z_e(x) − e_j‖ (Eq. 1): latents (n, D), codebook (K, D) → codes (n,) int64.

    ‖z − e‖² = ‖z‖² − 2 (z·e − ½‖e‖²), and ‖z‖² is the same for every entry.
    """
    half_norms = codebook.square().sum(1) / 2
    sites_at_once = max(1, DISTANCES_AT_ONCE // len(codebook))
    pieces = [torch.addmm(half_norms, piece, codebook.T, alpha=-1).argmin(1) for piece in latents.split(sites_at_once)]
    return torch.cat(pieces)


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
