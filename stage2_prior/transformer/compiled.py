"""One position as a function of tensors whose shapes stay the same, which `torch.compile` compiles once.

It computes the same as `TransformerSteps`, but looks at the whole cache, in which later positions are masked.

Shapes: b batch, d channels, n positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from .layers import KeyValueCache


class PlacedCache(KeyValueCache):
    """Keys and values of all positions, with the place (1,) int64 of the new one."""

    def __init__(self, tensor: Tensor, place: Tensor) -> None:
        self.tensor, self.place = tensor, place
        self.seen = (torch.arange(tensor.shape[4], device=place.device) <= place)[None]

    def put(self, layer: int, key: Tensor, value: Tensor, causal: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keep a layer's key and value of the new position; return all of them, and which it sees (1, n)."""
        keys, values = self.tensor[layer].unbind(0)
        return keys.index_copy_(2, self.place, key), values.index_copy_(2, self.place, value), self.seen


def one_position(
    blocks: nn.ModuleList, x: Tensor, turned: tuple[Tensor, Tensor] | None, tensor: Tensor, place: Tensor
) -> Tensor:
    """Pass a new position (b, 1, d) through all layers."""
    cache = PlacedCache(tensor, place)
    for number, block in enumerate(blocks):
        x = block(x, turned, cache=cache, layer=number)
    return x


@lru_cache
def compiled_position() -> Callable[..., Tensor]:
    """Return `one_position`, compiled once for each network and batch size that it meets."""
    return torch.compile(one_position, dynamic=False)
