"""The nearest codebook entry, and the gradient that passes through it.

Shapes: n sites, D embedding_dim, K codebook entries.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

# The search looks at this many (site, entry) pairs at once, so that the matrix of all distances is never held whole,
# and its pieces stay in the processor's cache.
PAIRS_AT_ONCE = 2**20


def nearest_codes(latents: torch.Tensor, codebook: torch.Tensor, distance: str = "euclidean") -> torch.Tensor:
    """k(x) = argmin_j ‖z_e(x) − e_j‖ (Eq. 1): latents (n, D), codebook (K, D) → codes (n,) int64.

    `distance` is a name in `DISTANCES`. Of entries at the same distance the first is taken.
    """
    entries, offsets = DISTANCES[distance](codebook)
    sites_at_once = max(1, PAIRS_AT_ONCE // len(codebook))
    pieces = [torch.addmm(offsets, piece, entries.T, alpha=-1).argmin(1) for piece in latents.split(sites_at_once)]
    return torch.cat(pieces)


def _euclidean(codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # ‖z − e‖² = ‖z‖² + 2 (½‖e‖² − z·e), and ‖z‖² is the same for every entry
    return codebook, codebook.square().sum(1) / 2


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
