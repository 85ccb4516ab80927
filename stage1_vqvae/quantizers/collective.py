"""What the processes of a run know together: sums over the joint batch, and rows of it. The same bits on each of them.

Shapes: n latents of this process, D embedding_dim, K codebook entries.
"""

import torch
import torch.distributed as dist


def is_joint() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def own_rank() -> int:
    """The number of this process, 0 where there is only one."""
    return dist.get_rank() if is_joint() else 0


def tally(latents: torch.Tensor, codes: torch.Tensor, num_embeddings: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hits n_i (K,) and sums Σ_j z_ij (K, D) of the joint batch, for latents (n, D) that chose codes (n,)."""
    hits = torch.bincount(codes, minlength=num_embeddings).to(latents.dtype)
    sums = latents.new_zeros(num_embeddings, latents.shape[1]).index_add_(0, codes, latents)
    if is_joint():
        dist.all_reduce(hits)
        dist.all_reduce(sums)
    return hits, sums


def all_gather(values: torch.Tensor) -> torch.Tensor:
    """One tensor from each process, of the same shape (...) on all → (processes, ...)."""
    if not is_joint():
        return values[None]
    gathered = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, values.contiguous())
    return torch.stack(gathered)


def take_rows(latents: torch.Tensor, rows: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """Latents that different processes hold → (m, D) on all.

    For each of m places exactly one process says `ours`, and its row number (m,) counts; a sum over the processes, of
    one latent and zeros, completes them.
    """
    taken = torch.where(ours[:, None], latents[rows.clamp(0, len(latents) - 1)], 0)
    if is_joint():
        dist.all_reduce(taken)
    return taken


def random_rows(latents: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """`count` random latents of the joint batch: (count, D). The choice follows from the seed and the joint size."""
    sizes = all_gather(torch.tensor(len(latents), device=latents.device)).tolist()
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(sum(sizes), (count,), generator=generator).to(latents.device) - sum(sizes[: own_rank()])
    return take_rows(latents, rows, (rows >= 0) & (rows < len(latents)))
