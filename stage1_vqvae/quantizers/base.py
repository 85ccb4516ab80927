"""What every quantizer of one codebook shares: the lookup, the straight-through gradient, usage, revival.

Shapes: b batch, D embedding_dim, *sites one to three axes of the code grid, n = b·sites, K codebook entries.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from codegrid.limits import MOST_ENTRIES, WIDEST, check_name, check_number, check_whole

from .collective import random_rows, tally
from .kmeans import kmeans
from .nearest import DISTANCES, Nearest, StraightThrough, find_nearest

GRACE_STEPS = 2  # batches that a revived entry survives without a hit; at the next one it moves again


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
            of what a uniform use would give, is moved onto a random latent of the batch. 0 switches revival off;
            by default `default_revival` of the class.
        distance: `euclidean`, or `cosine`, which only chooses: `vectors` are the stored entries.
        kmeans_steps: training steps at the start in which the codebook is what k-means makes of the batch's latents.
    """

    codebook: torch.Tensor
    default_revival = 0.3

    def __init__(
        self,
        num_embeddings: int = 512,
        embedding_dim: int = 64,
        commitment_cost: float = 0.25,
        decay: float = 0.99,
        revival_threshold: float | None = None,
        distance: str = "euclidean",
        kmeans_steps: int = 0,
    ) -> None:
        super().__init__()
        check_whole("num_embeddings", num_embeddings, 1, MOST_ENTRIES)
        check_whole("embedding_dim", embedding_dim, 1, WIDEST)
        check_number("commitment_cost", commitment_cost)
        check_number("decay", decay, low=1e-6, below=1)
        if revival_threshold is not None:
            check_number("revival_threshold", revival_threshold, below=1)
        check_name("distance", distance, DISTANCES)
        check_whole("kmeans_steps", kmeans_steps, 0, 2**31)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.commitment_cost = commitment_cost
        self.decay = decay
        self.revival_threshold = self.default_revival if revival_threshold is None else revival_threshold
        self.distance = distance
        self.kmeans_steps = kmeans_steps
        # buffers and not Python numbers: they must survive save and load
        self.register_buffer("running_hits", torch.ones(num_embeddings))
        self.register_buffer("running_steps", torch.zeros((), dtype=torch.int64))
        # gradient accumulation: True before all but the last forward of an optimizer step
        self.postpone_update = False
        self._postponed: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, latents: torch.Tensor) -> Quantized:
        """(b, D, *sites) → vectors, codes, loss. In train mode the codebook moves after the lookup.

        Where `postpone_update` is set it stays, and moves at the next forward by the latents of both.
        """
        # distances, sums and counts in the codebook's float32: bfloat16 ties would move codes
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.to(self.codebook.dtype)
            flat, (codes, _) = self._choose(latents)
            vectors = self.look_up(codes)
            loss = self._loss(latents, vectors)
            quantized = Quantized(StraightThrough.apply(latents, vectors), codes, loss)
            if self.training:
                self._update_when_complete(flat, codes.flatten())
        return quantized

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """(b, D, *sites) → codes (b, *sites) int64; never moves the codebook."""
        return self.encode_marking_ties(latents, mark_ties=False).codes

    def encode_marking_ties(self, latents: torch.Tensor, mark_ties: bool = True) -> Nearest:
        """The same, and where rounding decides between two entries: codes (b, *sites) int64, tied (b, *sites) bool."""
        with torch.autocast(latents.device.type, enabled=False):
            return self._choose(latents, mark_ties)[1]

    def _choose(self, latents: torch.Tensor, mark_ties: bool = False) -> tuple[torch.Tensor, Nearest]:
        """Latents (b, D, *sites) as rows (n, D), and the code of each (b, *sites)."""
        exact = torch.promote_types(self.codebook.dtype, torch.float32)  # for models in half precision, too
        flat = rearrange(latents.detach().to(exact), "b d ... -> (b ...) d")
        found = find_nearest(flat, self.codebook.detach().to(exact), self.distance, mark_ties)
        shape = (latents.shape[0], *latents.shape[2:])
        return flat, Nearest(*(None if part is None else part.view(shape) for part in found))

    def look_up(self, codes: torch.Tensor) -> torch.Tensor:
        """z_q(x) = e_k (Eq. 2): codes (b, *sites) → vectors (b, D, *sites)."""
        return rearrange(F.embedding(codes, self.codebook), "b ... d -> b d ...")

    def codebook_loss(self, latents: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """The second term of Eq. 3 for latents without gradient, or zero where no gradient moves the codebook."""
        raise NotImplementedError

    def _loss(self, latents: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """‖sg[z_e] − e‖² + β ‖z_e − sg[e]‖² (Eq. 3), means over all elements."""
        commitment_loss = F.mse_loss(latents, vectors.detach())
        return self.codebook_loss(latents.detach(), vectors) + self.commitment_cost * commitment_loss

    def _update_codebook(self, latents: torch.Tensor, hits: torch.Tensor, sums: torch.Tensor, step: int) -> None:
        """Move the codebook at this step, given this process's latents (n, D), the joint hits (K,) and sums (K, D)."""

    def _update_when_complete(self, latents: torch.Tensor, codes: torch.Tensor) -> None:
        """`_update`, once for all the pieces of an optimizer step."""
        self._postponed.append((latents, codes))
        if not self.postpone_update:
            pieces, self._postponed = self._postponed, []
            self._update(*pieces[0] if len(pieces) == 1 else map(torch.cat, zip(*pieces, strict=True)))

    @torch.no_grad()
    def _update(self, latents: torch.Tensor, codes: torch.Tensor) -> None:
        """One training step's bookkeeping for latents (n, D) that chose codes (n,), over all processes together."""
        step = int(self.running_steps)
        if step < self.kmeans_steps:
            self._start_with_kmeans(latents, step)
        else:
            hits, sums = tally(latents, codes, self.num_embeddings)
            self.running_hits.mul_(self.decay).add_(hits, alpha=1 - self.decay)
            self._update_codebook(latents, hits, sums, step)
            if self.revival_threshold > 0:
                self._revive(latents, hits, step)
        self.running_steps += 1

    def _start_with_kmeans(self, latents: torch.Tensor, step: int) -> None:
        """Set the codebook to the means of clusters of the joint batch, and the running hits to their sizes."""
        start = self.codebook.detach() if step else random_rows(latents, self.num_embeddings, seed=0)
        codebook, sizes = kmeans(latents, start, self.distance, seed=step)
        self.codebook.data.copy_(codebook)
        self.running_hits.copy_(sizes)

    def _revive(self, latents: torch.Tensor, hits: torch.Tensor, step: int) -> None:
        """Move entries that are not used onto random latents, until one of them is hit.

        A moved entry starts so close to the threshold that it moves again soon if it is not hit. In the first steps,
        while the encoder drifts away from its codebook, this keeps the codebook among the latents.
        """
        threshold = self.revival_threshold * hits.sum() / self.num_embeddings
        dead = (hits == 0) & (self.running_hits < threshold)
        if dead.any():
            chosen = random_rows(latents, self.num_embeddings, seed=step)
            self.codebook.data.copy_(torch.where(dead[:, None], chosen, self.codebook))
            fresh = threshold / self.decay ** (GRACE_STEPS + 0.5)
            self.running_hits.copy_(torch.where(dead, fresh, self.running_hits))
