"""Quantizers of one codebook: the lookup, usage, revival, and two ways to learn it.

Shapes: b batch, D embedding_dim, *sites one to three axes of the code grid, n latents of this process, K codebook
entries.
"""

from dataclasses import asdict
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from codegrid.codes import Codes, Grid, Layout, Losses, Moment, Sides
from codegrid.limits import make_options
from codegrid.noise import torch_rng
from codegrid.protocols import Quantized
from codegrid.stage1_vqvae.options import CodebookOptions

from .collective import count_and_sum, count_latents, random_rows
from .estimators import ESTIMATORS
from .nearest import nearest_codes

GRACE_STEPS = 2  # batches without a hit that a revived entry survives; at the next one it moves again
KMEANS_ITERATIONS = 10


class Tally(NamedTuple):
    """Latents, hits and sums of a step's batch."""

    latents: torch.Tensor  # (n, D), of this process
    hits: torch.Tensor  # (K,) n_i, how many latents of all processes chose each entry
    sums: torch.Tensor  # (K, D) Σ_j z_ij, the sums of these latents


class CodebookQuantizer(nn.Module):
    """Nearest-entry vector quantization (van den Oord et al. 2017, Eq. 1 to 3).

    A subclass creates `self.codebook` (K, D) float32, and either adds a term to `losses`, by which the optimizer moves
    it, or moves it in `move_entries`.

    Args:
        num_embeddings: K.
        embedding_dim: D.
        commitment_cost: β of Eq. 3, on the encoder's term.
        decay: γ of the running hits N_i ← γ N_i + (1−γ) n_i.
        revival_threshold: an entry that no latent of the batch chose, and whose running hits are below this share
            of what a uniform use would give, is moved onto a random latent of the batch. 0 switches revival off;
            by default `default_revival` of the class.
        distance: `euclidean`, or `cosine`, which only chooses: `vectors` are the stored entries.
        kmeans_steps: training steps at the start in which the codebook is set by k-means of the batch's latents.
        estimator: how the gradient at the vectors reaches the latents, a name in `ESTIMATORS`.

    Raises `InputError` if an option is unknown or a value is out of range.

    Worked example: latents (8, 64, 7, 7) with num_embeddings=512, embedding_dim=64
    → vectors (8, 64, 7, 7), codes ((8, 7, 7),) in 0 ... 511.
    """

    options: ClassVar[type] = CodebookOptions
    default_revival: ClassVar[float] = 0.3
    codebook: torch.Tensor
    running_hits: torch.Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__()
        settings = make_options(self.options, options, type(self).__name__)
        self.config = asdict(settings)
        self.num_embeddings: int = settings.num_embeddings
        self.embedding_dim: int = settings.embedding_dim
        self.commitment_cost: float = settings.commitment_cost
        self.decay: float = settings.decay
        threshold = settings.revival_threshold
        self.revival_threshold: float = self.default_revival if threshold is None else threshold
        self.distance: str = settings.distance
        self.kmeans_steps: int = settings.kmeans_steps
        self.estimator: str = settings.estimator
        # a buffer, because it must be saved and loaded
        self.register_buffer("running_hits", torch.ones(self.num_embeddings, dtype=torch.float32))
        self._notes: list[tuple[torch.Tensor, torch.Tensor]] = []

    def layout(self, sites: Sides) -> Layout:
        """Return the one grid of latents with these sites."""
        return (Grid(sites, self.num_embeddings),)

    def forward(self, latents: torch.Tensor, moment: Moment | None = None) -> Quantized:
        """Return vectors, codes and losses of latents (b, D, *sites); with a moment, note them for `after_step`."""
        # distances and losses in the codebook's float32: bfloat16 ties would move codes
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.to(self._exact)
            rows, codes = self._choose(latents)
            vectors = self.look_up((codes,))
            losses = self.losses(latents, vectors.to(latents.dtype))
            if moment is not None:
                self.observe(rows, codes.flatten())
            return Quantized(ESTIMATORS[self.estimator](latents, vectors), (codes,), losses)

    @torch.no_grad()
    def encode(self, latents: torch.Tensor) -> Codes:
        """Return the codes of latents (b, D, *sites), one tensor (b, *sites) int64, without changing any state."""
        with torch.autocast(latents.device.type, enabled=False):
            return (self._choose(latents)[1],)

    def look_up(self, codes: Codes) -> torch.Tensor:
        """Return the vectors z_q(x) = e_k (Eq. 2), (b, D, *sites), of codes, one tensor (b, *sites)."""
        (only,) = codes
        return rearrange(F.embedding(only, self.codebook), "b ... d -> b d ...")

    def entries(self, grid: int) -> torch.Tensor:
        """Return the codebook (K, D)."""
        return self.codebook.detach()

    def losses(self, latents: torch.Tensor, vectors: torch.Tensor) -> Losses:
        """Return β ‖z_e − sg[e]‖², the last term of Eq. 3, as a mean over all elements."""
        return Losses({"commitment_loss": self.commitment_cost * F.mse_loss(latents, vectors.detach())}, {})

    def observe(self, latents: torch.Tensor, codes: torch.Tensor) -> None:
        """Note latents (n, D) and the codes (n,) that they chose, for the next `after_step`."""
        self._notes.append((latents, codes))

    @torch.no_grad()
    def after_step(self, step: int, seed: int, *purpose: str | int) -> None:
        """Move the codebook by what all processes noted since the last step; if that is nothing, leave it."""
        latents, codes = self._take_notes()
        if not sum(count_latents(latents)):
            return
        if step < self.kmeans_steps:
            self.start_with_kmeans(latents, step, seed, *purpose)
            return
        tally = Tally(latents, *count_and_sum(latents, codes, self.num_embeddings))
        if not step and self.revival_threshold > 0 and bool((self.running_hits == 1).all()):  # untrained
            # if latents are fewer than entries, 1 is far above uniform use: revival would wait hundreds of steps
            self.running_hits.clamp_(max=self._fresh(tally))
        self.running_hits.mul_(self.decay).add_(tally.hits, alpha=1 - self.decay)
        self.move_entries(tally, step, seed, *purpose)
        if self.revival_threshold > 0:
            self._revive(tally, torch_rng(seed, "revival", *purpose, step))

    def start_with_kmeans(self, latents: torch.Tensor, step: int, seed: int, *purpose: str | int) -> None:
        """Set the codebook to the means of clusters of the joint batch, and the running hits to their sizes."""
        draw = torch_rng(seed, "kmeans", *purpose, step)
        start = self.codebook.detach() if step else random_rows(latents, self.num_embeddings, draw)
        codebook, sizes = kmeans(latents, start, self.distance, draw)
        self.set_entries(codebook, torch.ones_like(sizes, dtype=torch.bool))
        self.running_hits.copy_(sizes)

    def move_entries(self, tally: Tally, step: int, seed: int, *purpose: str | int) -> None:
        """Move the codebook, unless the optimizer does. The running hits have already been updated."""

    def set_entries(self, entries: torch.Tensor, which: torch.Tensor) -> None:
        """Replace the entries of the codebook that `which` (K,) marks by those of `entries` (K, D)."""
        self.codebook.data.copy_(torch.where(which[:, None], entries, self.codebook))

    @property
    def _exact(self) -> torch.dtype:
        # in models of half precision, too
        return torch.promote_types(self.running_hits.dtype, torch.float32)

    def _choose(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents (b, D, *sites) as rows (n, D), and the codes (b, *sites)."""
        rows = rearrange(latents.detach().to(self._exact), "b d ... -> (b ...) d")
        codes = nearest_codes(rows, self.codebook.detach().to(self._exact), self.distance)
        return rows, codes.view(latents.shape[0], *latents.shape[2:])

    def _take_notes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the latents (n, D) and codes (n,) that were noted, and forget them."""
        notes, self._notes = self._notes, []
        if not notes:
            device = self.running_hits.device
            return (
                torch.zeros(0, self.embedding_dim, device=device, dtype=self._exact),
                torch.zeros(0, device=device, dtype=torch.int64),
            )
        latents, codes = zip(*notes, strict=True)
        return (latents[0], codes[0]) if len(notes) == 1 else (torch.cat(latents), torch.cat(codes))

    def _threshold(self, tally: Tally) -> torch.Tensor:
        """Return the running hits () below which an entry is revived if no latent of the batch chose it."""
        return self.revival_threshold * tally.hits.sum() / self.num_embeddings

    def _fresh(self, tally: Tally) -> torch.Tensor:
        """Return the running hits () of an entry that has just been moved."""
        return self._threshold(tally) / self.decay ** (GRACE_STEPS + 0.5)

    def _revive(self, tally: Tally, draw: torch.Generator) -> None:
        """Move entries that are not used onto random latents, until one of them is hit.

        A moved entry starts so close to the threshold that it moves again soon if it is not hit. In the first steps,
        while the encoder drifts away from its codebook, this keeps the codebook among the latents.
        """
        dead = (tally.hits == 0) & (self.running_hits < self._threshold(tally))
        if dead.any():
            chosen = random_rows(tally.latents, self.num_embeddings, draw)
            self.set_entries(chosen, dead)
            self.running_hits.copy_(torch.where(dead, self._fresh(tally), self.running_hits))


class EMAQuantizer(CodebookQuantizer):
    """A codebook learnt by exponential moving averages (van den Oord et al. 2017, Appendix A.1).

    Each entry is the running mean of the latents that chose it; the codebook term of the loss drops out.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        codebook = torch.randn(self.num_embeddings, self.embedding_dim, dtype=torch.float32)
        self.register_buffer("codebook", codebook)

    def move_entries(self, tally: Tally, step: int, seed: int, *purpose: str | int) -> None:
        """Update each entry: e_i ← e_i + (1−γ) (Σ_j z_ij − n_i e_i) / N_i, with N_i already updated.

        This equals m_i / N_i of Eq. A.1 to A.3, without keeping the sums m_i: an entry that is not hit does not move.
        """
        gap = (tally.sums - tally.hits[:, None] * self.codebook) / self.running_hits.clamp_min(1e-12)[:, None]
        self.codebook.add_(gap, alpha=1 - self.decay)


class LearntQuantizer(CodebookQuantizer):
    """A codebook that the optimizer moves, by the gradient of its term of the loss."""

    def losses(self, latents: torch.Tensor, vectors: torch.Tensor) -> Losses:
        """Return ‖sg[z_e] − e‖² + β ‖z_e − sg[e]‖² (Eq. 3), as means over all elements."""
        terms, figures = super().losses(latents, vectors)
        return Losses({"codebook_loss": F.mse_loss(vectors, latents.detach()), **terms}, figures)


class GradientQuantizer(LearntQuantizer):
    """A codebook learnt by gradient: ‖sg[z_e] − e‖² (Eq. 3) pulls each chosen entry to its latents."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        bound = 1 / self.num_embeddings
        codebook = torch.empty(self.num_embeddings, self.embedding_dim, dtype=torch.float32)
        self.codebook = nn.Parameter(codebook.uniform_(-bound, bound))


def kmeans(
    latents: torch.Tensor, codebook: torch.Tensor, distance: str, draw: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codebook (K, D) after Lloyd's iterations on the joint batch, and the size of each cluster (K,).

    An empty cluster starts again at a random latent.
    """
    for _ in range(KMEANS_ITERATIONS):
        sizes, sums = count_and_sum(latents, nearest_codes(latents, codebook, distance), len(codebook))
        fresh = random_rows(latents, len(codebook), draw)
        codebook = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], fresh)
    return codebook, sizes
