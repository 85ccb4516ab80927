"""Base class for priors that draw code by code: everything that follows from their logits.

Shapes: b batch, K num_embeddings of a grid, *shape its sites.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from codegrid.codes import Codes, Condition, Known, Losses, Moment, Progress
from codegrid.drawn_priors import Steps
from codegrid.noise import Noise
from codegrid.protocols import NO_CONDITION, Keeps, Likelihood
from codegrid.sampling_config import SamplingConfig

from .grid_prior import GridPrior
from .likelihood import cross_entropy, mean_nats
from .sampling.backends import choose_backend
from .sampling.sequential import PlainSteps, sample_sequential, site_by_site


class SequentialPrior(GridPrior):
    """Base class of a prior that draws code by code; you write only the network and `logits`.

    A subclass names the dataclass of its options as `options`, and finds their values in `self.chosen`. Its `logits`
    must say how likely each code is, given only the codes before it, in raster order, all codes of a site before the
    next. Loss, likelihood and sampling, also with kept rows, follow from that.

    The arguments are those of `GridPrior`.
    """

    likelihood: ClassVar[Likelihood] = "exact"
    keeps: ClassVar[Keeps] = "first"
    controls: ClassVar[frozenset[str]] = frozenset({"temperature", "top_k", "top_p"})

    @property
    def takes(self) -> tuple[str, ...]:
        """Return the parts of a condition, besides labels, that this prior accepts."""
        return (*super().takes, "lengths")

    def logits(self, codes: Codes, given: Condition = NO_CONDITION) -> tuple[Tensor, ...]:
        """Return logits (b, K, *shape) of each grid for codes (b, *shape), each from the codes before it alone."""
        raise NotImplementedError(f"{type(self).__name__} needs a method `logits`")

    def forward(self, codes: Codes, given: Condition = NO_CONDITION, moment: Moment | None = None) -> Losses:
        """Return the loss, the mean nats per code, for codes (b, *shape) of each grid.

        A moment hides some of the coarser codes and texts.
        """
        if self.num_words:
            given = given._replace(text=self.texts(given, len(codes[0]), moment))
        if self.given_grids:
            given = given._replace(codes=self.coarser_codes(given, len(codes[0]), moment))
        return mean_nats(self.logits(codes, given), codes, given.lengths)

    @torch.no_grad()
    def nll(
        self,
        codes: Codes,
        given: Condition = NO_CONDITION,
        noise: Noise | None = None,
        num_inference_steps: int | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the nats (b, *shape) of each code given those before it; they are exact and need no noise."""
        pairs = zip(self.logits(codes, given), codes, strict=True)
        return tuple(cross_entropy(of_grid, grid) for of_grid, grid in pairs)

    def steps(self, given: Condition, batch_size: int, backend: str = "auto") -> Steps:
        """Return the steps that compute logits code by code, with a forward pass for each.

        Raises `InputError` if this prior has no such backend.
        """
        choose_backend(backend, self)
        return PlainSteps(self, given, batch_size, site_by_site(self.layout))

    def sample(
        self,
        given: Condition,
        noise: Noise,
        config: SamplingConfig,
        known: Known | None = None,
        backend: str = "auto",
        watch: bool = False,
    ) -> Iterator[Progress]:
        """Draw `noise.count` samples code by code; see `sample_sequential`."""
        return sample_sequential(self, given, noise, config, known, backend, watch)
