"""Ancestral sampling in raster order: p(z) = Π p(z_i | z_<i), row by row, left to right.

Samplers are functions. `sample_plain` knows only `prior(codes, labels)`; `sample_cached` gives the same codes and
knows only `prior.new_cache(...)`, an object with `next_logits() → (b, K)` and `append(codes)`.

Shapes: b batch, h w code grid, K codebook entries.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn


@torch.no_grad()
def sample_plain(
    prior: nn.Module,
    batch_size: int,
    height: int,
    width: int,
    labels: Sequence[int] | torch.Tensor | None = None,
    seed: int = 0,
    first_index: int = 0,
    temperature: float = 1.0,
) -> torch.Tensor:
    """The reference: one forward pass a site. Same arguments and codes as `sample_cached`."""
    device = next(prior.parameters()).device
    labels = _as_tensor(labels, device)
    uniforms = draw_uniforms(batch_size, height * width, seed, first_index).to(device)
    codes = torch.zeros(batch_size, height, width, dtype=torch.int64, device=device)
    with _evaluating(prior):
        for site in range(height * width):
            row, column = divmod(site, width)
            logits = prior(codes, labels)[:, :, row, column]
            codes[:, row, column] = choose_codes(logits, uniforms[:, site], temperature)
    return codes


@torch.no_grad()
def sample_cached(
    prior: nn.Module,
    batch_size: int,
    height: int,
    width: int,
    labels: Sequence[int] | torch.Tensor | None = None,
    seed: int = 0,
    first_index: int = 0,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Codes (b, h, w) int64, drawn site by site with nothing computed twice.

    Args:
        labels: one for each sample, for a class-conditional prior; None for grids of no particular class, from a prior
            that learnt such.
        seed, first_index: sample i draws from (seed, first_index + i) alone, in whatever batch it is drawn.
        temperature: divides the logits; 0 takes the most probable code.
    """
    device = next(prior.parameters()).device
    labels = _as_tensor(labels, device)
    uniforms = draw_uniforms(batch_size, height * width, seed, first_index).to(device)
    codes = torch.zeros(batch_size, height * width, dtype=torch.int64, device=device)
    with _evaluating(prior):
        cache = prior.new_cache(batch_size, height, width, labels)
        for site in range(height * width):
            codes[:, site] = choose_codes(cache.next_logits(), uniforms[:, site], temperature)
            cache.append(codes[:, site])
    return codes.view(batch_size, height, width)


def draw_uniforms(batch_size: int, num_sites: int, seed: int, first_index: int) -> torch.Tensor:
    """(b, sites) float64 in [0, 1): row i follows from (seed, first_index + i) alone, on any machine."""
    rows = [np.random.default_rng([seed, first_index + i]).random(num_sites) for i in range(batch_size)]
    return torch.from_numpy(np.stack(rows))


def choose_codes(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float) -> torch.Tensor:
    """The code at which the cumulative probability passes u: logits (b, K), u (b,) → codes (b,) int64."""
    if temperature == 0:
        return logits.argmax(1)
    # in float64, so that the sum over K codes does not decide which one is drawn
    cumulative = torch.softmax(logits.double() / temperature, dim=1).cumsum(1)
    thresholds = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, thresholds, right=True).squeeze(1).clamp_max(logits.shape[1] - 1)


def _as_tensor(labels: Sequence[int] | torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    return None if labels is None else torch.as_tensor(labels, dtype=torch.int64, device=device)


class _evaluating:
    """Eval mode for the length of a block."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.was_training = self.module.training
        self.module.eval()

    def __exit__(self, *error: object) -> None:
        self.module.train(self.was_training)
