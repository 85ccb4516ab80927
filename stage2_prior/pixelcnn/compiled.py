"""One site as a function without side effects: what `torch.compile` can fuse, and record as a CUDA graph.

The same numbers as `HorizontalStack.logits_at`, whose tensors are written in place.

Shapes: b batch, c channels, l layers, K num_embeddings, s sites that a kernel sees, the own one included.
"""

from collections.abc import Callable
from functools import lru_cache

import torch


def site(
    prepared: torch.Tensor, seen: torch.Tensor, weights: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the site gets from above (l, b, 2c), and each layer's inputs on its left (l-1, b, (s-1)·c).

    Returns its logits (b, K) and the own site's inputs of every layer but the first (l-1, b, c).
    """
    kernels, out, floor, hidden, hidden_bias, logits, logits_bias = weights
    for_left = seen.shape[2]
    features = []
    for i, gates in enumerate(prepared):
        if i:
            gates = torch.addmm(torch.addmm(gates, seen[i - 1], kernels[i - 1, :for_left]), features[-1],
                                kernels[i - 1, for_left:])  # fmt: skip
        signal, opening = gates.sigmoid().chunk(2, dim=1)
        gated = torch.addcmul(opening, signal, opening, value=-2)
        features.append(torch.addmm(features[-1], gated, out[i]) if i else gated @ out[0])
    features = torch.stack(features)
    unfolded = torch.maximum(features[-1], floor)
    return torch.addmm(logits_bias, torch.addmm(hidden_bias, unfolded, hidden).relu(), logits), features[:-1]


@lru_cache
def compiled_site(device_type: str) -> Callable:
    """`site`, compiled once for each batch size that it meets."""
    return torch.compile(site, dynamic=False, mode="reduce-overhead" if device_type == "cuda" else None)
