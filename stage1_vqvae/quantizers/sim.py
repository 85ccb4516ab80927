"""SimVQ (Zhu et al. 2024, arXiv 2411.02038): one learnt matrix moves all entries of a codebook together.

Shapes: D embedding_dim, K codebook entries.
"""

from typing import Any

import torch
from torch import nn

from codegrid.devices import widest

from .codebook import LearntQuantizer


class SimQuantizer(LearntQuantizer):
    """The codebook C·W, of which the optimizer moves W alone: a latent moves every entry, and not only its own.

    C (K, D) is drawn from N(0, 1/D) and stays; W (D, D) begins as the identity. Where an entry is not used even so,
    revival changes its row of C such that C·W has the latent that it moves to; so does k-means at the start.
    """

    coefficients: torch.Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        drawn = torch.randn(self.num_embeddings, self.embedding_dim, dtype=torch.float32)
        self.register_buffer("coefficients", drawn / self.embedding_dim**0.5)
        self.basis = nn.Parameter(torch.eye(self.embedding_dim, dtype=torch.float32))

    @property
    def codebook(self) -> torch.Tensor:  # type: ignore[override]
        """C·W (K, D), with gradient."""
        with torch.autocast(self.basis.device.type, enabled=False):
            return self.coefficients @ self.basis

    def set_entries(self, entries: torch.Tensor, which: torch.Tensor) -> None:
        """Put entries (K, D) in the place of those of C·W that `which` (K,) marks."""
        exact = widest(entries.device)
        rows = (entries.to(exact) @ torch.linalg.pinv(self.basis.detach().to(exact))).to(self.coefficients.dtype)
        self.coefficients.copy_(torch.where(which[:, None], rows, self.coefficients))
