"""Requests to priors: the number of samples, their conditions, how to draw them, and the codes to keep.

Shapes: n samples, p pictures, *size the pixels of a picture, *shape the sites of each grid.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from codegrid.codes import NO_LABEL, Codes, Condition, Known, Layout, describe_layout
from codegrid.errors import InputError
from codegrid.limits import NumSamples, Seed, check_value, check_whole
from codegrid.protocols import Prior, Tokenizer
from codegrid.sampling_config import SamplingConfig, sampling_configs
from codegrid.stage2_prior.conditions import Conditions, Labels

if TYPE_CHECKING:
    from .rejection import Rejection

Keep = int | torch.Tensor


class Request(NamedTuple):
    """A checked request for samples; all processes that draw a part of it share the same one."""

    num_samples: int  # n
    condition: Condition  # of all samples, on the CPU
    seed: int
    configs: tuple[SamplingConfig, ...]  # one for each prior
    known: Known | None = None  # the codes (p, *shape) of the pictures, and which of them are kept
    of_each: int = 1  # samples of each picture, which follow each other: p · of_each = n
    draw: int = 0  # the number of the draw, if there are several of each sample
    rejection: Rejection | None = None  # keeps the best of several draws of each sample

    @property
    def labels(self) -> torch.Tensor | None:
        """Labels (n,) int64, NO_LABEL for no particular class; None for unconditional priors."""
        return self.condition.labels

    @property
    def num_known(self) -> int:
        """The number of codes that are kept in each sample, over all grids."""
        return 0 if self.known is None else sum(int(mask[0].sum()) for mask in self.known.mask)

    @property
    def chosen(self) -> str:
        """Words that follow `samples` where each is the best of several draws; empty if it is not."""
        return f", each the best of {self.rejection.draws:,} draws" if self.rejection else ""

    def given(self, rows: range) -> Condition:
        """Return the condition of some samples."""
        return self.condition.rows(slice(rows.start, rows.stop))

    def known_of(self, rows: range) -> Known | None:
        """Return the kept codes of some samples."""
        if self.known is None:
            return None
        return self.known.rows(torch.arange(rows.start, rows.stop) // self.of_each)


def make_request(
    priors: Sequence[Prior],
    num_samples: int = 1,
    labels: Labels | None = None,
    seed: int | None = None,
    configs: Sequence[SamplingConfig] = (),
    of: str = "samples",
) -> Request:
    """Ask priors for samples.

    Args:
        priors: of one tokenizer, coarse to fine.
        num_samples: how many.
        labels: numbers or names of classes, or `none`, as `Conditions.resolve` reads them: one for each sample, or one
            for all. None: all classes in turn.
        seed: sample i depends only on (seed, i). None: a new one, which the request records.
        configs: how each prior draws; empty: from its unchanged distribution.
        of: what messages call the samples.

    Raises `InputError` if a prior does not support a setting.
    """
    check_value("num_samples", num_samples, NumSamples)
    seed = secrets.randbelow(2**32) if seed is None else seed
    check_value("seed", seed, Seed)
    configs = tuple(configs) or sampling_configs(len(priors))
    condition = conditions_of(priors).resolve(labels, num_samples, of)
    for prior, config in zip(priors, configs, strict=True):
        config.check_controls(prior.controls, type(prior).__name__)
        prior.conditions.check_guidance(config.guidance_scale, condition)
    return Request(num_samples, condition, seed, configs)


def complete_codes(
    priors: Sequence[Prior],
    codes: Codes,
    masks: tuple[torch.Tensor, ...],
    num_completions: int = 1,
    labels: Labels | None = None,
    seed: int | None = None,
    configs: Sequence[SamplingConfig] = (),
) -> Request:
    """Ask for completions of pictures; those of one picture follow each other.

    Args:
        codes: of the pictures, (p, *shape) for each grid.
        masks: which sites (*shape) bool of each grid to keep: see `top_rows` and `kept_masks`.
        num_completions: of each picture.
        labels: one for each picture or one for all. None: no particular class.
        priors, seed, configs: as for `make_request`.

    Raises `InputError` if a prior cannot keep these codes, or does not support a setting.
    """
    check_value("num_completions", num_completions, NumSamples)
    for prior in priors:
        check_keeps(prior, masks)
    if labels is None and conditions_of(priors).num_classes:
        labels = NO_LABEL
    (num_pictures,) = {len(grid) for grid in codes}
    request = make_request(priors, num_pictures, labels, seed, configs, "pictures")
    known = Known(codes, tuple(mask.expand_as(grid) for mask, grid in zip(masks, codes, strict=True)))
    return request._replace(
        num_samples=num_pictures * num_completions,
        condition=request.condition.each(lambda part: part.repeat_interleave(num_completions, 0)),
        known=known,
        of_each=num_completions,
    )


def conditions_of(priors: Sequence[Prior]) -> Conditions:
    """Return the conditions that labels are read by: those of the first prior that has classes, if any."""
    return next((prior.conditions for prior in priors if prior.conditions.num_classes), priors[0].conditions)


def kept_masks(tokenizer: Tokenizer, keep: Keep) -> tuple[torch.Tensor, ...]:
    """Return masks (*shape) bool of the sites to keep, one for each grid.

    Args:
        keep: how many rows of codes, as for `top_rows`; or a mask over the sites, if all grids have one shape; or a
            mask (*size) over the known pixels.

    Raises `InputError` if a mask fits neither the grids nor the pictures.
    """
    layout, signal = tokenizer.layout, tokenizer.signal
    if not isinstance(keep, torch.Tensor):
        return top_rows(layout, keep)
    mask, shape = keep.bool().cpu(), tuple(keep.shape)
    if all(shape == grid.shape for grid in layout):
        return tuple(mask for _ in layout)
    if shape == signal.size:
        return tuple(sites.cpu() for sites in tokenizer.kept_sites(mask.to(tokenizer.device)))
    raise InputError(
        f"`keep`: the mask has the shape {shape}: give one of the grids ({describe_layout(layout)}) or of the pictures "
        f"({'×'.join(map(str, signal.size))} pixels)"
    )


def top_rows(layout: Layout, rows: int, name: str = "keep") -> tuple[torch.Tensor, ...]:
    """Return masks (*shape) bool that keep the first rows of the coarsest grid, and the same share of finer grids.

    `name` is the caller's parameter, for messages. Raises `InputError` if no rows or all rows would be kept.
    """
    height = layout[0].shape[0]
    if height == 1:
        raise InputError(f"`{name}`: the grids have a single row of codes: keeping it would leave nothing to draw")
    check_whole(name, rows, 1, height - 1)
    masks = [torch.zeros(grid.shape, dtype=torch.bool) for grid in layout]
    for mask in masks:
        mask[: rows * len(mask) // height] = True
    return tuple(masks)


def check_keeps(prior: Prior, masks: tuple[torch.Tensor, ...]) -> None:
    """Raise `InputError` if a prior's sampler cannot keep the sites that masks (*shape) of its grids select."""
    for mask in [masks[grid] for grid in prior.grids]:
        in_order, count = mask.flatten(), int(mask.sum())
        if count and prior.keeps == "none":
            raise InputError("this prior cannot keep any codes: it only draws whole samples")
        if prior.keeps == "first" and not in_order[:count].all():
            raise InputError(
                f"the mask keeps site {int(in_order.nonzero().max())} in raster order, but not all before it: this "
                "prior draws codes in that order, so that only the first ones can be kept"
            )
