"""The online clustered codebook (CVQ-VAE: Zheng and Vedaldi 2023, arXiv 2307.15139), and the anchors it moves to.

Shapes: n latents of this process, D embedding_dim, m entries that move, K codebook entries.
"""

from typing import Any, ClassVar

import torch
from torch import nn

from codegrid.devices import widest
from codegrid.noise import torch_rng
from codegrid.stage1_vqvae.options import ClusteredOptions

from .codebook import CodebookQuantizer, EMAQuantizer, GradientQuantizer, Tally
from .collective import all_gather, gather_rows, is_distributed, random_rows, rank
from .nearest import nearest_codes
from .soft import as_compared, draw_near, log_weights

LEAST_SHARE = 1e-6  # an entry that would move by less stays where it is, bit for bit
POOL_REFRESH = 0.5  # share of the pool of random anchors that each batch replaces


class Clustered(CodebookQuantizer):
    """Codebook whose entries also move toward an anchor among the latents, the further the less they are used.

    u_k ← γ u_k + (1−γ) n_k / n,   a_k = exp(−u_k · K · 10/(1−γ) − ε),   e_k ← (1−a_k) e_k + a_k · anchor_k

    A mixin for a quantizer, which goes on to learn its codebook in its own way.

    Args:
        anchors: `random`, from a pool of latents; `closest`, the closest; `probabilistic`, one drawn by distance.
        anchor_once: move entries in the first step only.
        options: those of every quantizer with a codebook. With moving averages revival is off by default, because
            unused entries move anyway.
    """

    options: ClassVar[type] = ClusteredOptions
    running_usage: torch.Tensor
    default_revival: ClassVar[float] = 0.0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.anchor_once: bool = self.config["anchor_once"]
        self.anchors = ANCHORS[self.config["anchors"]](self.num_embeddings, self.embedding_dim, self.distance)
        # u_k: shares, from 0
        self.register_buffer("running_usage", torch.zeros(self.num_embeddings, dtype=torch.float32))

    def start_with_kmeans(self, latents: torch.Tensor, step: int, seed: int, *purpose: str | int) -> None:
        """Set codebook, running hits and usage by k-means."""
        super().start_with_kmeans(latents, step, seed, *purpose)
        self.running_usage.copy_(self.running_hits / self.running_hits.sum())

    def move_entries(self, tally: Tally, step: int, seed: int, *purpose: str | int) -> None:
        """Move entries as the base quantizer does, and then toward their anchors."""
        super().move_entries(tally, step, seed, *purpose)
        self.running_usage.mul_(self.decay).add_(tally.hits / tally.hits.sum(), alpha=1 - self.decay)
        if self.anchor_once and step > self.kmeans_steps:
            return
        shares = torch.exp(-self.running_usage * self.num_embeddings * 10 / (1 - self.decay) - 1e-3)
        moved = (shares > LEAST_SHARE).nonzero().flatten()
        anchors = self.anchors(tally.latents, self.codebook.detach(), moved, seed, "anchors", *purpose, step)
        self.codebook.data[moved] = self.codebook.detach()[moved].lerp(anchors, shares[moved, None])


class ClusteredQuantizer(Clustered, EMAQuantizer):
    """The clustered codebook whose used entries are moving averages."""


class ClusteredGradientQuantizer(Clustered, GradientQuantizer):
    """The clustered codebook whose used entries the optimizer moves.

    Revival is on by default: an entry that was hit once stays where it is for some hundred steps, and in the first
    steps gradients alone do not carry it after the latents.
    """

    default_revival: ClassVar[float] = CodebookQuantizer.default_revival


# Anchors. Each is called as anchors(latents (n, D), codebook (K, D), moved (m,) numbers of entries, seed, *purpose)
# → (m, D), the same on each process.


class Anchors(nn.Module):
    """Latents that entries move toward."""

    def __init__(self, num_embeddings: int, embedding_dim: int, distance: str) -> None:
        super().__init__()
        self.distance = distance


class RandomAnchors(Anchors):
    """Random latents from a pool of K, which the latest batches have filled."""

    running_pool: torch.Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, distance: str) -> None:
        super().__init__(num_embeddings, embedding_dim, distance)
        self.register_buffer("running_pool", torch.zeros(num_embeddings, embedding_dim, dtype=torch.float32))

    def forward(
        self, latents: torch.Tensor, codebook: torch.Tensor, moved: torch.Tensor, seed: int, *purpose: str | int
    ) -> torch.Tensor:
        """Refresh the pool, and return a row of it for each entry that moves."""
        size = len(self.running_pool)
        fresh = random_rows(latents, size, torch_rng(seed, *purpose, "rows"))
        refresh = torch.rand(size, generator=torch_rng(seed, *purpose, "places")).to(latents.device) < POOL_REFRESH
        refresh |= (self.running_pool == 0).all(1)  # never filled
        self.running_pool.copy_(torch.where(refresh[:, None], fresh, self.running_pool))
        return self.running_pool[moved]


class ClosestAnchors(Anchors):
    """The latent of the joint batch that is closest to the entry."""

    def forward(
        self, latents: torch.Tensor, codebook: torch.Tensor, moved: torch.Tensor, seed: int, *purpose: str | int
    ) -> torch.Tensor:
        """Return the closest latent of all processes: the closest of those that each process finds."""
        entries = codebook[moved]
        rows, gaps = torch.zeros_like(moved), entries.new_full((len(moved),), torch.inf)
        if len(latents):
            rows = nearest_codes(entries, latents, self.distance)  # the roles exchanged
            gaps = as_compared(entries, self.distance) - as_compared(latents[rows], self.distance)
            gaps = gaps.square().sum(1)
        return gather_rows(latents, rows, all_gather(gaps).argmin(0) == rank())


class ProbabilisticAnchors(Anchors):
    """A latent of the joint batch drawn for each entry with probability softmax(−‖z − e‖²), or softmax(cos(z, e))."""

    def forward(
        self, latents: torch.Tensor, codebook: torch.Tensor, moved: torch.Tensor, seed: int, *purpose: str | int
    ) -> torch.Tensor:
        """Draw by the inverse CDF over the joint batch: first the process, then one of its latents."""
        entries = codebook[moved]
        draws = torch.rand(len(entries), generator=torch_rng(seed, *purpose), dtype=torch.float64)
        draws = draws.to(latents.device, widest(latents.device))
        ours = torch.ones_like(moved, dtype=torch.bool)
        if is_distributed():
            masses = torch.cat([piece.logsumexp(1) for piece in log_weights(entries, latents, self.distance)])
            draws, ours = _our_part(draws, masses)
        return gather_rows(latents, draw_near(entries, latents, self.distance, draws), ours)


def _our_part(draws: torch.Tensor, log_masses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return draws (m,) over the joint mass as draws over this process's share, and whether they fall in it."""
    edges = all_gather(log_masses).softmax(0).cumsum(0)  # (processes, m): where the share of each ends
    edges = torch.cat([edges.new_zeros(1, len(draws)), edges])
    start, end = edges[rank()], edges[rank() + 1]
    winner = (draws >= edges[1:-1]).sum(0)
    return (draws - start) / (end - start).clamp_min(1e-300), winner == rank()


ANCHORS: dict[str, type[nn.Module]] = {
    "random": RandomAnchors,
    "closest": ClosestAnchors,
    "probabilistic": ProbabilisticAnchors,
}
