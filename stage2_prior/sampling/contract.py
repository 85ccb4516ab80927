"""What a sampler must know of a prior. Whatever meets this can be sampled: later priors, too.

Shapes: b batch, h w code grid, K num_embeddings.
"""

from collections.abc import Iterator
from typing import Protocol

import torch


class Cache(Protocol):
    """A forward pass in raster order, with nothing computed twice."""

    def append_rows(self, codes: torch.Tensor) -> None:
        """Take in whole rows of known codes (b, rows, w), at the start of a row."""

    def next_logits(self) -> torch.Tensor:
        """Logits (b, K) of the next site. They are asked for at every site that `append_rows` did not pass over."""

    def append(self, codes: torch.Tensor) -> None:
        """Take in the codes (b,) of the site whose logits were given last."""


class Prior(Protocol):
    """p(codes) = Π p(z_i | z_<i, label)."""

    training: bool

    def eval(self) -> object:
        """Stop what is random in training."""

    def train(self, mode: bool) -> object:
        """Go back to the mode before."""

    def __call__(self, codes: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Codes (b, h, w) int64, labels (b,) → logits (b, K, h, w); site i's depend on the sites before i alone."""

    def new_cache(self, batch_size: int, height: int, width: int, labels: torch.Tensor | None) -> Cache:
        """The same logits, one site after the other."""

    def parameters(self) -> Iterator[torch.Tensor]:
        """The weights: sampling goes on where they are."""
