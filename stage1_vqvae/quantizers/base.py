"""What every quantizer of one codebook shares: the lookup, the straight-through gradient, usage, revival.

Shapes: b batch, D embedding_dim, *sites one to three axes of the code grid, n = b·sites, K codebook entries.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .nearest import StraightThrough, nearest_codes
from .revival import choose_latents

GRACE_STEPS = 2  # batches that a revived entry survives without a hit


class Quantized(NamedTuple):
    """What a quantizer makes of latents (b, D, *sites)."""

    vectors: torch.Tensor  # (b, D, *sites), the codebook entries; their gradient reaches the latents unchanged
    codes: torch.Tensor  # (b, *sites) int64, 0 ... K-1
    loss: torch.Tensor  # scalar: codebook_loss + commitment_cost · commitment_loss


class Quantizer(nn.Module):
    """Nearest-entry vector quantization (van den Oord et al. 2017, Eq. 1 to 3).

    A subclass creates `self.codebook` (K, D) float32, says what its `codebook_loss` is, and moves the codebook
    in `_update_codebook` where the optimizer does not.

    Args:
        num_embeddings: K.
        embedding_dim: D.
        commitment_cost: β of Eq. 3, on the encoder's term.
        decay: γ of the running hits N_i ← γ N_i + (1−γ) n_i.
        revival_threshold: an entry that no latent of the batch chose, and whose running hits are below this share
            of what a uniform use would give, is moved onto a random latent of the batch. 0 switches revival off.
    """

    codebook: torch.Tensor

    def __init__(
        self,
        num_embeddings: int = 512,
        embedding_dim: int = 64,
        commitment_cost: float = 0.25,
        decay: float = 0.99,
        revival_threshold: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.commitment_cost = commitment_cost
        self.decay = decay
        self.revival_threshold = revival_threshold
        # buffers and not Python numbers: they must survive save and load
        self.register_buffer("running_hits", torch.ones(num_embeddings))
        self.register_buffer("running_steps", torch.zeros((), dtype=torch.int64))

    def forward(self, latents: torch.Tensor) -> Quantized:
        """(b, D, *sites) → vectors, codes, loss. In train mode the codebook moves after the lookup."""
        # distances, sums and counts in the codebook's float32: bfloat16 ties would move codes
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.to(self.codebook.dtype)
            flat = rearrange(latents, "b d ... -> (b ...) d")
            flat_codes = nearest_codes(flat.detach(), self.codebook.detach())
            codes = flat_codes.view(latents.shape[0], *latents.shape[2:])
            vectors = self.look_up(codes)
            commitment_loss = F.mse_loss(latents, vectors.detach())
            loss = self.codebook_loss(latents.detach(), vectors) + self.commitment_cost * commitment_loss
            quantized = Quantized(StraightThrough.apply(latents, vectors), codes, loss)
            if self.training:
                self._update(flat.detach(), flat_codes)
        return quantized

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """(b, D, *sites) → codes (b, *sites) int64; never moves the codebook."""
        with torch.autocast(latents.device.type, enabled=False):
            flat = rearrange(latents.to(self.codebook.dtype), "b d ... -> (b ...) d")
            return nearest_codes(flat, self.codebook).view(latents.shape[0], *latents.shape[2:])

    def look_up(self, codes: torch.Tensor) -> torch.Tensor:
        """z_q(x) = e_k (Eq. 2): codes (b, *sites) → vectors (b, D, *sites)."""
        return rearrange(F.embedding(codes, self.codebook), "b ... d -> b d ...")

    def codebook_loss(self, latents: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """The second term of Eq. 3 for latents without gradient, or zero where no gradient moves the codebook."""
        raise NotImplementedError

    def _update_codebook(self, hits: torch.Tensor, sums: torch.Tensor) -> None:
        """Move the codebook, given hits n_i (K,) of the joint batch and sums Σ_j z_ij (K, D) of its latents."""

    @torch.no_grad()
    def _update(self, latents: torch.Tensor, codes: torch.Tensor) -> None:
        """One training step's bookkeeping for latents (n, D) that chose codes (n,), over all processes together."""
        hits = torch.bincount(codes, minlength=self.num_embeddings).to(latents.dtype)
        sums = torch.zeros_like(self.codebook).index_add_(0, codes, latents)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(hits)
            dist.all_reduce(sums)
        self.running_hits.mul_(self.decay).add_(hits, alpha=1 - self.decay)
        self._update_codebook(hits, sums)
        if self.revival_threshold > 0:
            self._revive(latents, hits)
        self.running_steps += 1

    def _revive(self, latents: torch.Tensor, hits: torch.Tensor) -> None:
        """Move entries that are not used onto random latents, until one of them is hit.

        A moved entry starts so close to the threshold that it moves again if the next GRACE_STEPS batches do not
        hit it. In the first steps, while the encoder drifts away from its codebook, this keeps the codebook among
        the latents.
        """
        threshold = self.revival_threshold * hits.sum() / self.num_embeddings
        dead = (hits == 0) & (self.running_hits < threshold)
        chosen = choose_latents(latents, self.num_embeddings, seed=int(self.running_steps))
        self.codebook.data.copy_(torch.where(dead[:, None], chosen, self.codebook))
        fresh = threshold / self.decay**GRACE_STEPS
        self.running_hits.copy_(torch.where(dead, fresh, self.running_hits))
