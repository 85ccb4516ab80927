"""One site as a function without side effects, which `torch.compile` can fuse and record as a CUDA graph.

It computes the same as `HorizontalStack`, which writes its tensors in place.

Shapes: b batch, c channels, l layers, K num_embeddings of the first grid, s sites that a kernel sees, the own one
included.
"""

from collections.abc import Callable
from functools import lru_cache

import torch


def site(
    from_above: torch.Tensor, seen: torch.Tensor, weights: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute a site from its input from above (l, b, 2c) and each layer's inputs on its left (l-1, b, (s-1)·c).

    Returns the logits (b, K) of its first grid and the residual stream after every layer (l, b, c).
    """
    kernels, out, floor, hidden, hidden_bias, logits, logits_bias = weights
    for_left = seen.shape[2]
    stream: list[torch.Tensor] = []
    for i, gates in enumerate(from_above):
        if i:
            gates = torch.addmm(torch.addmm(gates, seen[i - 1], kernels[i - 1, :for_left]), stream[-1],
                                kernels[i - 1, for_left:])  # fmt: skip
        values, gate = gates.sigmoid().chunk(2, dim=1)
        gated = torch.addcmul(gate, values, gate, value=-2)
        stream.append(torch.addmm(stream[-1], gated, out[i]) if i else gated @ out[0])
    features = torch.stack(stream)
    unfolded = torch.maximum(features[-1], floor)
    return torch.addmm(logits_bias, torch.addmm(hidden_bias, unfolded, hidden).relu(), logits), features


@lru_cache
def compiled_site(device_type: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Return `site`, compiled once for each batch size that it meets."""
    return torch.compile(site, dynamic=False, mode="reduce-overhead" if device_type == "cuda" else None)
