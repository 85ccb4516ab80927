"""Things that are made of a network's weights, and kept for the next batch while these are what they were."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch

Made = TypeVar("Made")

MOST = 3  # things; the oldest ones go


class Kept:
    """Things by their keys. Copies and pickles begin empty.

    The weights are compared by value, a millisecond for a million of them on a CPU: PyTorch's own counters of changes
    know nothing of fused optimizers, nor of what is written through `.data`.
    """

    def __init__(self) -> None:
        self.weights: torch.Tensor | None = None
        self.things: dict[Hashable, Any] = {}

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()

    def clear(self) -> None:
        """Forget everything."""
        self.weights = None
        self.things.clear()

    def check(self, parameters: Iterable[torch.Tensor]) -> torch.Tensor:
        """Forget everything where a weight is not what it was, or on another device, or of another type.

        Returns what `put` asks for: the weights, so that nothing made of these is put beside others.
        """
        weights = torch.cat([parameter.detach().flatten() for parameter in parameters])
        before = self.weights
        alike = before is not None and (before.device, before.dtype) == (weights.device, weights.dtype)
        if before is not None and alike and torch.equal(before, weights):
            return before
        self.clear()
        self.weights = weights
        return weights

    def take(self, key: Hashable) -> Any:
        """Return a thing, or None, and keep it no longer: nobody else can use it meanwhile."""
        return self.things.pop(key, None)

    def put(self, key: Hashable, thing: Any, weights: torch.Tensor) -> None:
        """Keep a thing that was made of some weights, as the newest one, if these are still those that count."""
        if weights is self.weights:
            self.things[key] = thing
            while len(self.things) > MOST:
                self.take(next(iter(self.things)))


def of_use_everywhere(make: Callable[[], Made]) -> Made:
    """Return what `make` does: no part of it is an inference tensor, which could not be written outside that mode."""
    with torch.inference_mode(False), torch.no_grad():
        return make()
