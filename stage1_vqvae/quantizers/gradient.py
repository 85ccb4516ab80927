"""The codebook of the paper's Eq. 3: a parameter that the optimizer moves."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .base import Quantizer


class GradientQuantizer(Quantizer):
    """Codebook by gradient: ‖sg[z_e] − e‖² pulls each chosen entry to its latents.

    Worked example: latents (8, 64, 7, 7) with num_embeddings=512, embedding_dim=64
    → vectors (8, 64, 7, 7), codes (8, 7, 7) in 0 ... 511, loss ().
    """

    def __init__(self, num_embeddings: int = 512, embedding_dim: int = 64, **options: Any) -> None:
        super().__init__(num_embeddings, embedding_dim, **options)
        bound = 1 / num_embeddings
        self.codebook = nn.Parameter(torch.empty(num_embeddings, embedding_dim).uniform_(-bound, bound))

    def codebook_loss(self, latents: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """mean ‖sg[z_e] − e‖²."""
        return F.mse_loss(vectors, latents)
