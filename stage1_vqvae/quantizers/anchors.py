"""Anchors of the online clustered codebook: the latents that entries which are not used move toward.

Shapes: n latents of this process, D embedding_dim, m entries that move, K codebook entries.

Each is called as anchors(latents (n, D), codebook (K, D), moved (m,) numbers of entries, step) → (m, D), the same on
each process.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .collective import all_gather, is_joint, own_rank, random_rows, take_rows
from .nearest import nearest_codes, tile_for

POOL_REFRESH = 0.5  # share of the pool that each batch replaces


class RandomAnchors(nn.Module):
    """Random latents of a pool of K, which the last batches have filled."""

    def __init__(self, num_embeddings: int, embedding_dim: int, distance: str) -> None:
        super().__init__()
        self.register_buffer("running_pool", torch.zeros(num_embeddings, embedding_dim))

    def forward(self, latents: torch.Tensor, codebook: torch.Tensor, moved: torch.Tensor, step: int) -> torch.Tensor:
        """A row of the pool for each entry that moves."""
        size = len(self.running_pool)
        fresh = random_rows(latents, size, seed=step)
        refresh = torch.rand(size, generator=_generator(step)).to(latents.device) < POOL_REFRESH
        refresh |= (self.running_pool == 0).all(1)  # never filled
        self.running_pool.copy_(torch.where(refresh[:, None], fresh, self.running_pool))
        return self.running_pool[moved]


class ClosestAnchors(nn.Module):
    """The latent of the joint batch that is closest to the entry."""

    def __init__(self, num_embeddings: int, embedding_dim: int, distance: str) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, latents: torch.Tensor, codebook: torch.Tensor, moved: torch.Tensor, step: int) -> torch.Tensor:
        """The closest latent of each process, and of those the closest."""
        entries = codebook[moved]
        rows = nearest_codes(entries, latents, self.distance)  # the roles exchanged
        gaps = _as_compared(entries, self.distance) - _as_compared(latents[rows], self.distance)
        winner = all_gather(gaps.square().sum(1)).argmin(0)
        return take_rows(latents, rows, winner == own_rank())


class ProbabilisticAnchors(nn.Module):
    """A latent of the joint batch drawn for each entry with probability softmax(−‖z − e‖²), or softmax(cos(z, e))."""

    def __init__(self, num_embeddings: int, embedding_dim: int, distance: str) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, latents: torch.Tensor, codebook: torch.Tensor, moved: torch.Tensor, step: int) -> torch.Tensor:
        """By inverse CDF over the joint batch: first the process whose latents hold the draw, then the latent."""
        points, entries = _as_compared(latents, self.distance), _as_compared(codebook[moved], self.distance)
        centre = points.mean(0)  # distances between points far from the origin would lose their digits
        points, entries = points - centre, entries - centre
        scale = 0.5 if self.distance == "cosine" else 1.0  # ‖z − e‖² = 2 (1 − cos) on the sphere
        tile = tile_for(latents.device)
        pieces = entries.split(max(1, tile.pairs // len(latents)))  # the matrix (m, n) is never held whole
        draws = torch.rand(len(entries), generator=_generator(step), dtype=torch.float64).to(latents.device)
        ours = torch.ones_like(moved, dtype=torch.bool)
        if is_joint():
            masses = torch.cat([_log_weights(piece, points, scale).logsumexp(1) for piece in pieces])
            draws, ours = _our_part(draws, masses)
        rows = [
            (_log_weights(piece, points, scale).softmax(1).cumsum(1) <= draw[:, None]).sum(1)
            for piece, draw in zip(pieces, draws.split(len(pieces[0])), strict=True)
        ]
        return take_rows(latents, torch.cat(rows), ours)


def _our_part(draws: torch.Tensor, log_masses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws (m,) over the joint mass → the same over this process's share of it, and whether they fall there."""
    edges = all_gather(log_masses).softmax(0).cumsum(0)  # (processes, m): where the share of each ends
    edges = torch.cat([edges.new_zeros(1, len(draws)), edges])
    start, end = edges[own_rank()], edges[own_rank() + 1]
    winner = (draws >= edges[1:-1]).sum(0)
    return (draws - start) / (end - start).clamp_min(1e-300), winner == own_rank()


def _as_compared(vectors: torch.Tensor, distance: str) -> torch.Tensor:
    """Vectors whose Euclidean distance orders them as `distance` does."""
    return F.normalize(vectors, dim=1) if distance == "cosine" else vectors


def _log_weights(entries: torch.Tensor, latents: torch.Tensor, scale: float) -> torch.Tensor:
    """−scale · ‖z − e‖² (m, n), in float64: thousands of small shares are added up."""
    return -scale * torch.cdist(entries, latents).square().double()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ANCHORS: dict[str, type[nn.Module]] = {
    "random": RandomAnchors,
    "closest": ClosestAnchors,
    "probabilistic": ProbabilisticAnchors,
}
