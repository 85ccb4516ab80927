"""The codebook by exponential moving averages (van den Oord et al. 2017, Appendix A.1)."""

from typing import Any

import torch

from .base import Quantizer


class EMAQuantizer(Quantizer):
    """Each entry is the running mean of the latents that chose it; the codebook term of the loss drops out.

    Worked example: latents (8, 64, 7, 7) with num_embeddings=512, embedding_dim=64
    → vectors (8, 64, 7, 7), codes (8, 7, 7) in 0 ... 511, loss ().
    """

    def __init__(self, num_embeddings: int = 512, embedding_dim: int = 64, **options: Any) -> None:
        super().__init__(num_embeddings, embedding_dim, **options)
        self.register_buffer("codebook", torch.randn(num_embeddings, embedding_dim))

    def codebook_loss(self, latents: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Zero: no gradient moves this codebook."""
        return latents.new_zeros(())

    def _update_codebook(self, latents: torch.Tensor, hits: torch.Tensor, sums: torch.Tensor, step: int) -> None:
        """e_i ← e_i + (1−γ) (Σ_j z_ij − n_i e_i) / N_i, with N_i already updated.

        The same as m_i / N_i of Eq. A.1 to A.3, without keeping the sums m_i: an entry that is not hit does not move.
        """
        gap = (sums - hits[:, None] * self.codebook) / self.running_hits.clamp_min(1e-12)[:, None]
        self.codebook.add_(gap, alpha=1 - self.decay)
