"""k-means: a codebook of the means of clusters of latents.

Shapes: n latents of this process, D embedding_dim, K codebook entries.
"""

import torch

from .collective import random_rows, tally
from .nearest import nearest_codes

ITERATIONS = 10


def kmeans(
    latents: torch.Tensor, codebook: torch.Tensor, distance: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lloyd's iterations on the joint batch from this codebook: a new one (K, D), and the size of each cluster (K,).

    A cluster that is empty starts again at a random latent.
    """
    for iteration in range(ITERATIONS):
        sizes, sums = tally(latents, nearest_codes(latents, codebook, distance), len(codebook))
        fresh = random_rows(latents, len(codebook), seed * ITERATIONS + iteration + 1)
        codebook = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], fresh)
    return codebook, sizes
