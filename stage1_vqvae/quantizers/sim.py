"""SimVQ (Zhu et al. 2024, arXiv 2411.02038): one learnt matrix moves all entries of a codebook together.

Shapes: D embedding_dim, K codebook entries.
"""

from typing import Any

import torch
from torch import nn

from codegrid.devices import widest

from .codebook import LearntQuantizer


class SimQuantizer(LearntQuantizer):
    """The codebook C·W, where the optimizer moves only W: each latent moves all entries, not only its own.

    C (K, D) is drawn from N(0, 1/D) and fixed; W (D, D) starts as the identity. If an entry is unused nevertheless,
    revival sets its row of C so that C·W is the latent that it moves to. K-means at the start does the same.
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
        """Replace the entries of C·W that `which` (K,) marks by those of entries (K, D)."""
        exact = widest(entries.device)
        rows = (entries.to(exact) @ torch.linalg.pinv(self.basis.detach().to(exact))).to(self.coefficients.dtype)
        self.coefficients.copy_(torch.where(which[:, None], rows, self.coefficients))
