"""Random latents of the joint batch of all processes, the same on each of them."""

import torch
import torch.distributed as dist


def choose_latents(latents: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """`count` random rows of this process's latents (n, D), joined with those of all others: (count, D).

    The choice follows from the seed and the joint number of rows alone. Every process draws the same row numbers,
    fills in the rows that it holds, and a sum over the processes completes them.
    """
    generator = torch.Generator().manual_seed(seed)
    if not (dist.is_available() and dist.is_initialized()):
        return latents[torch.randint(len(latents), (count,), generator=generator).to(latents.device)]
    sizes = [torch.zeros((), dtype=torch.int64, device=latents.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor(len(latents), device=latents.device))
    first = int(sum(sizes[: dist.get_rank()]))
    rows = torch.randint(int(sum(sizes)), (count,), generator=generator).to(latents.device) - first
    ours = (rows >= 0) & (rows < len(latents))
    chosen = latents[rows.clamp(0, len(latents) - 1)] * ours[:, None]
    dist.all_reduce(chosen)
    return chosen
