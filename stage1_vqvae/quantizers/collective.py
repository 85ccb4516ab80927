"""Sums over the joint batch of all processes of a run, and rows of it: the same bits on each process.

Every process must call these functions the same number of times, even if it has no latents itself.

Shapes: n latents of this process, D embedding_dim, K codebook entries.
"""

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """Return whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return the number of this process, 0 if there is only one."""
    return dist.get_rank() if is_distributed() else 0


def all_gather(values: torch.Tensor) -> torch.Tensor:
    """Gather one tensor from each process, of the same shape (...) on all, into (processes, ...)."""
    if not is_distributed():
        return values[None]
    gathered = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, values.contiguous())
    return torch.stack(gathered)


def count_latents(latents: torch.Tensor) -> list[int]:
    """Return how many latents each process has."""
    if not is_distributed():
        return [len(latents)]
    return all_gather(torch.tensor(len(latents), device=latents.device)).tolist()


def count_and_sum(latents: torch.Tensor, codes: torch.Tensor, num_embeddings: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hits n_i (K,) and sums Σ_j z_ij (K, D) of the joint batch, for latents (n, D) that chose codes (n,)."""
    hits = torch.bincount(codes, minlength=num_embeddings).to(latents.dtype)
    sums = latents.new_zeros(num_embeddings, latents.shape[1]).index_add_(0, codes, latents)
    if is_distributed():
        dist.all_reduce(hits)
        dist.all_reduce(sums)
    return hits, sums


def joint_mean(sums: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Mean over the joint batch of what each process has summed (...) over its own latents (n, ...).

    The gradient reaches a process's own sums alone, times the number of processes: what is computed from the mean is
    the same on each, and afterwards their gradients are averaged.
    """
    sizes = count_latents(latents)
    total = sums
    if is_distributed():
        total = sums.detach().clone()
        dist.all_reduce(total)
        total = total + (sums - sums.detach()) * len(sizes)
    return total / max(1, sum(sizes))


def gather_rows(latents: torch.Tensor, rows: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """Return latents (m, D) that different processes hold, on all processes.

    Each of the m rows belongs to one process, where `ours` (m,) is True and `rows` (m,) is its index among the latents;
    all other processes add zeros to a sum over the processes.
    """
    taken = latents.new_zeros(len(rows), latents.shape[1])
    if len(latents):
        taken = torch.where(ours[:, None], latents[rows.clamp(0, len(latents) - 1)], taken)
    if is_distributed():
        dist.all_reduce(taken)
    return taken


def random_rows(latents: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return `count` random latents (count, D) of the joint batch; the CPU generator is the same on each process."""
    sizes = count_latents(latents)
    rows = torch.randint(sum(sizes), (count,), generator=generator).to(latents.device) - sum(sizes[: rank()])
    return gather_rows(latents, rows, (rows >= 0) & (rows < len(latents)))
