"""Ancestral sampling in raster order: p(z) = Π p(z_i | z_<i), row by row, left to right.

Samplers are functions. `sample_plain` knows only `prior(codes, labels)`; `sample_cached` gives the same codes and
knows only `prior.new_cache(...)`. Both are described in `contract.py`.

Shapes: b batch, h w code grid, m known sites, K codebook entries.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from codegrid.codes import NO_LABEL

from .contract import Prior
from .logits import Controls, choose_codes

RowCallback = Callable[[torch.Tensor, int], None]  # of the grids (b, h, w) so far, and the row that was finished last


@torch.no_grad()
def sample_plain(
    prior: Prior,
    batch_size: int,
    height: int,
    width: int,
    labels: Sequence[int] | torch.Tensor | None = None,
    seed: int = 0,
    first_index: int = 0,
    known: torch.Tensor | None = None,
    callback: RowCallback | None = None,
    **controls: Any,
) -> torch.Tensor:
    """The reference: one forward pass a site. Same arguments and codes as `sample_cached`."""
    start = _prepare(prior, batch_size, height, width, labels, seed, first_index, known, Controls(**controls))
    grids = start.codes.view(batch_size, height, width)
    with _evaluating(prior):
        for site in range(start.num_known, height * width):
            logits = prior(start.for_prior(grids), start.labels)[:, :, site // width, site % width]
            start.codes[:, site] = choose_codes(logits, start.uniforms[:, site], start.controls)
            if callback and (site + 1) % width == 0:
                callback(grids, site // width)
    return grids


@torch.no_grad()
def sample_cached(
    prior: Prior,
    batch_size: int,
    height: int,
    width: int,
    labels: Sequence[int] | torch.Tensor | None = None,
    seed: int = 0,
    first_index: int = 0,
    known: torch.Tensor | None = None,
    callback: RowCallback | None = None,
    **controls: Any,
) -> torch.Tensor:
    """Codes (b, h, w) int64, drawn site by site with nothing computed twice.

    Args:
        labels: one for each sample, for a class-conditional prior; NO_LABEL, or None for all, asks for grids of no
            particular class, from a prior that learnt such.
        seed, first_index: sample i draws from (seed, first_index + i) alone, in whatever batch it is drawn.
        known: codes (b, m) of the first m sites in raster order, which are kept.
        callback: called with (grids, row) after each row that is drawn: the codes (b, h, w) themselves, not a copy,
            in which the rows below `row` are still 0. What it raises ends the sampling.
        controls: temperature, top_k, top_p and guidance_scale, as in `Controls`.

    Worked example: `sample_cached(prior, 16, 7, 7, labels=[3] * 16, temperature=0.9, top_k=50)` → (16, 7, 7).
    """
    start = _prepare(prior, batch_size, height, width, labels, seed, first_index, known, Controls(**controls))
    grids = start.codes.view(batch_size, height, width)
    known_rows = start.num_known // width
    with _evaluating(prior):
        if start.num_known == height * width:
            return grids
        cache = prior.new_cache(len(start.for_prior(grids)), height, width, start.labels)
        if known_rows:
            cache.append_rows(start.for_prior(grids[:, :known_rows]))
        for site in range(known_rows * width, height * width):
            logits = cache.next_logits()
            if site >= start.num_known:
                start.codes[:, site] = choose_codes(logits, start.uniforms[:, site], start.controls)
            if callback and (site + 1) % width == 0:
                callback(grids, site // width)
            cache.append(start.for_prior(start.codes[:, site]))
    return grids


def draw_uniforms(batch_size: int, num_sites: int, seed: int, first_index: int) -> torch.Tensor:
    """(b, sites) float64 in [0, 1): row i follows from (seed, first_index + i) alone, on any machine."""
    rows = [np.random.default_rng([seed, first_index + i]).random(num_sites) for i in range(batch_size)]
    return torch.from_numpy(np.stack(rows))


class _Start(NamedTuple):
    """What both samplers start from."""

    codes: torch.Tensor  # (b, h·w) int64, filled as far as they are known
    num_known: int  # m
    labels: torch.Tensor | None  # (b,), or with guidance (2b,), whose second half asks for no class
    uniforms: torch.Tensor  # (b, h·w)
    controls: Controls

    def for_prior(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (b, ...) as often as the prior is asked: twice with guidance."""
        return torch.cat([codes, codes]) if self.controls.guided else codes


def _prepare(
    prior: Prior,
    batch_size: int,
    height: int,
    width: int,
    labels: Sequence[int] | torch.Tensor | None,
    seed: int,
    first_index: int,
    known: torch.Tensor | None,
    controls: Controls,
) -> _Start:
    device = next(iter(prior.parameters())).device
    if labels is not None:
        labels = torch.as_tensor(labels, dtype=torch.int64, device=device)
    if controls.guided:
        if labels is None:
            raise ValueError(f"guidance_scale {controls.guidance_scale}: guidance needs labels to guide to")
        labels = torch.cat([labels, torch.full_like(labels, NO_LABEL)])
    codes = torch.zeros(batch_size, height * width, dtype=torch.int64, device=device)
    num_known = 0 if known is None else known.shape[1]
    if num_known:
        if known.shape[0] != batch_size or num_known > height * width:
            raise ValueError(
                f"known codes of shape {tuple(known.shape)} for {batch_size} grids of {height * width} sites: they "
                "must be the first codes of each grid, in raster order"
            )
        codes[:, :num_known] = known
    uniforms = draw_uniforms(batch_size, height * width, seed, first_index).to(device)
    return _Start(codes, num_known, labels, uniforms, controls)


@contextmanager
def _evaluating(prior: Any) -> Iterator[None]:
    """Eval mode for the length of a block."""
    was_training = prior.training
    prior.eval()
    try:
        yield
    finally:
        prior.train(was_training)
