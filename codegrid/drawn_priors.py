"""Protocols of priors by how they are drawn from: what the functions in `stage2_prior/sampling/` know of a prior.

Shapes: b batch, D embedding_dim, *shape the sites of each grid of a layout, K num_embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .codes import Codes, Condition, Known
from .protocols import NO_CONDITION, Prior

if TYPE_CHECKING:
    from torch import Tensor

    from .sampling_config import SamplingConfig, Solver


class Steps(Protocol):
    """A forward pass driven step by step: by samplers, tests or an entropy coder.

    Steps that draw many codes faster than one by one also have `draw`: see `stage2_prior.sampling.sequential.Drawing`.
    """

    order: Sequence[tuple[int, range]]  # (grid, sites in raster order) of each step

    def next_logits(self) -> Tensor:
        """Return the logits (b, n, K) of the n sites of the next step."""

    def append(self, codes: Tensor) -> None:
        """Append the codes (b, n) of the step whose logits were returned last, or (b, m) of several known steps."""


class Sequential(Prior, Protocol):
    """A prior that draws step by step: site after site, or grid after grid.

    One whose steps keep keys and values has a property `bytes_per_sample`: their memory for each sample.
    One whose logits can have the same bits on every processor and in any batch, which compression to files for other
    machines needs, has a method `same_steps(given, batch_size)`, for when it is on the CPU, and `why_not_same()`, which
    says why not on this machine.
    One that keeps known sites roughly has a method `fit`, too: see `stage2_prior.next_scale.prior.NextScalePrior.fit`.
    """

    def logits(self, codes: Codes, given: Condition = NO_CONDITION) -> tuple[Tensor, ...]:
        """Return the logits (b, K, *shape) of each grid; those of a step depend only on earlier steps."""

    def steps(self, given: Condition, batch_size: int, backend: str) -> Steps:
        """Return the steps that compute the values of `logits` one step at a time."""


class Masked(Prior, Protocol):
    """A prior that draws many sites at once, in any order: each hidden code from all those that are not."""

    @property
    def own_settings(self) -> SamplingConfig:
        """Return how it draws unless told otherwise: at least its `num_inference_steps` and its `mask_schedule`."""

    @property
    def max_inference_steps(self) -> int:
        """Return the number of sites of all grids: there cannot be more steps."""

    def hidden_logits(self, codes: Codes, given: Condition = NO_CONDITION, backend: str = "auto") -> tuple[Tensor, ...]:
        """Return the logits (b, n, K) of the n sites of each grid for codes (b, *shape), HIDDEN where not drawn yet."""


class Denoising(Prior, Protocol):
    """A prior that removes noise from the vectors (b, D, *shape) that codes stand for, of all sites at once."""

    @property
    def own_settings(self) -> SamplingConfig:
        """Return how it draws unless told otherwise: at least its `num_inference_steps` and its `solver`."""

    @property
    def max_inference_steps(self) -> int:
        """Return the number of levels of noise: there cannot be more steps."""

    def latents(self, codes: Codes) -> Tensor:
        """Return the vectors (b, D, *shape) of codes, as training sees them: without noise."""

    def nearest(self, latents: Tensor, known: Known | None = None) -> Codes:
        """Return the codes whose vectors are nearest; known ones stay."""

    def denoiser(self, given: Condition, batch_size: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function of noisy vectors and a level of noise () that predicts v = √ᾱ ε − √(1−ᾱ) x_0."""

    def make_solver(self, solver: Solver | None) -> Any:
        """Return a new scheduler of diffusers, of DPM-Solver++: one drawing uses it."""
