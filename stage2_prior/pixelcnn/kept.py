"""A cache of things that are made from a network's weights, valid as long as these do not change."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch

Made = TypeVar("Made")

MOST = 3  # things; the oldest ones are dropped


class Kept:
    """A cache of things by their keys. Copies and pickles start empty.

    The weights are compared by value, which takes a millisecond for a million of them on a CPU: PyTorch's own version
    counters miss changes by fused optimizers and through `.data`.
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
        """Forget everything if a weight has changed, or is on another device or of another type.

        Returns the weights, which `put` needs, so that things made from different weights never mix.
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
        """Remove and return a thing, or None: nobody else can use it meanwhile."""
        return self.things.pop(key, None)

    def put(self, key: Hashable, thing: Any, weights: torch.Tensor) -> None:
        """Keep a thing as the newest one, if the weights that it was made from are still the current ones."""
        if weights is self.weights:
            self.things[key] = thing
            while len(self.things) > MOST:
                self.take(next(iter(self.things)))


def of_use_everywhere(make: Callable[[], Made]) -> Made:
    """Return the result of `make`, free of inference tensors, which cannot be written outside inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        return make()
