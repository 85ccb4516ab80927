"""Requests to priors: the number of samples, their conditions, how to draw them, and what to keep.

Shapes: n samples, p pictures, *shape the sites of each grid.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from codegrid.codes import NO_LABEL, Codes, Condition, Known
from codegrid.errors import InputError
from codegrid.limits import NumSamples, Seed, check_value
from codegrid.protocols import Prior
from codegrid.sampling_config import SamplingConfig, sampling_configs
from codegrid.stage2_prior.conditions import conditions_of
from codegrid.stage2_prior.written import Labels, Prompts

from .kept_part import Masks, check_keeps

if TYPE_CHECKING:
    from .paste import Paste
    from .rejection import Rejection


class Request(NamedTuple):
    """A checked request for samples; all processes that draw a part of it share the same one."""

    num_samples: int  # n
    condition: Condition  # of all samples, on the CPU
    seed: int
    configs: tuple[SamplingConfig, ...]  # one for each prior, with its own settings in place of None
    known: Known | None = None  # the codes (p, *shape) of the pictures, and which of them are kept
    of_each: int = 1  # samples of each picture, which follow each other: p · of_each = n
    paste: Paste | None = None  # puts the known pixels of the pictures into their completions
    roughly: bool = False  # kept codes may become others that show as much of a picture
    prompts: tuple[str, ...] = ()  # of each sample; empty without texts
    draw: int = 0  # the number of the draw, if there are several of each sample
    rejection: Rejection | None = None  # keeps the best of several draws of each sample

    @property
    def labels(self) -> torch.Tensor | None:
        """Labels (n,) int64, NO_LABEL for no particular class; None for unconditional priors."""
        return self.condition.labels

    def headings(self, classes: Sequence[str]) -> tuple[np.ndarray | None, Sequence[str]]:
        """Return a number (n,) of each sample's prompt, class or both, and what these are called; None with neither."""
        labels = None if self.labels is None else self.labels.numpy()
        if not self.prompts:
            return labels, classes
        of_class = [""] * len(self.prompts) if labels is None else [_after_prompt(label, classes) for label in labels]
        each = [prompt + name for prompt, name in zip(self.prompts, of_class, strict=True)]
        names = list(dict.fromkeys(each))
        numbers = {name: number for number, name in enumerate(names)}
        return np.array([numbers[name] for name in each]), names

    @property
    def num_known(self) -> int:
        """The number of codes that are kept in each sample, over all grids; the fewest, if samples differ in it."""
        if self.known is None:
            return 0
        return int(torch.cat([mask.flatten(1) for mask in self.known.mask], dim=1).sum(1).min())

    @property
    def chosen(self) -> str:
        """Words that follow `samples` where each is the best of several draws; empty if it is not."""
        return f", each the best of {self.rejection.draws:,} draws" if self.rejection else ""

    def given(self, rows: range) -> Condition:
        """Return the condition of some samples."""
        return self.condition.rows(slice(rows.start, rows.stop))

    def known_of(self, rows: range) -> Known | None:
        """Return the kept codes of some samples."""
        return None if self.known is None else self.known.rows(self.pictures_of(rows))

    def pictures_of(self, rows: range) -> torch.Tensor:
        """Return the number of the picture (b,) that each of some samples completes."""
        return torch.arange(rows.start, rows.stop) // self.of_each


def _after_prompt(label: int, classes: Sequence[str]) -> str:
    """Return what a heading says of a class after the prompt; nothing of no particular class."""
    return "" if label == NO_LABEL else f", {classes[label] if classes else label}"


def make_request(
    priors: Sequence[Prior],
    num_samples: int = 1,
    labels: Labels | None = None,
    seed: int | None = None,
    configs: Sequence[SamplingConfig] = (),
    of: str = "samples",
    prompts: Prompts | None = None,
) -> Request:
    """Ask priors for samples.

    Args:
        priors: of one tokenizer, coarse to fine.
        num_samples: how many.
        labels: numbers or names of classes, or `none`, as `Conditions.resolve` reads them: one for each sample, or one
            for all. None: all classes in turn, or with prompts no particular one.
        seed: sample i depends only on (seed, i). None: a new one, which the request records.
        configs: how each prior draws; empty: from its unchanged distribution.
        of: what messages call the samples.
        prompts: texts, for priors over texts: one for each sample, or one for all. None: no text.

    Raises `InputError` if a prior does not support a setting.
    """
    check_value("num_samples", num_samples, NumSamples)
    seed = secrets.randbelow(2**32) if seed is None else seed
    check_value("seed", seed, Seed)
    configs = tuple(configs) or sampling_configs(len(priors))
    condition = conditions_of(priors).resolve(labels, num_samples, of, prompts=prompts)
    texts = [prompts] if isinstance(prompts, str) else list(prompts or ())
    refusals = [_refusal(*each, condition) for each in zip(priors, configs, strict=True)]
    for number, refusal in enumerate(refusals):
        if refusal is not None and None in refusals and len(set(configs)) == 1:  # another prior supports the setting
            raise InputError(f"{refusal}, or give each prior a value (this is about prior {number})") from refusal
        if refusal is not None:
            raise refusal
    for prior in priors:
        prior.conditions.check_unlabelled(condition)
    own = tuple(config.completed_by(prior) for prior, config in zip(priors, configs, strict=True))
    each = texts * (num_samples // len(texts)) if texts else ()
    return Request(num_samples, condition, seed, own, prompts=tuple(each))


def _refusal(prior: Prior, config: SamplingConfig, condition: Condition) -> InputError | None:
    """Return why a prior does not support how it is asked to draw, if it does not."""
    try:
        config.check_controls(prior)
        prior.conditions.check_guidance(config.guidance_scale, condition)
    except InputError as error:
        return error
    return None


def complete_codes(
    priors: Sequence[Prior],
    codes: Codes,
    masks: Masks,
    num_completions: int = 1,
    labels: Labels | None = None,
    seed: int | None = None,
    configs: Sequence[SamplingConfig] = (),
    prompts: Prompts | None = None,
) -> Request:
    """Ask for completions of pictures; those of one picture follow each other.

    Args:
        codes: of the pictures, (p, *shape) for each grid.
        masks: which sites of each grid to keep, (*shape) bool, or (p, *shape) of each picture its own: see `Part`.
        num_completions: of each picture.
        labels: one for each picture or one for all. None: no particular class.
        prompts: one for each picture or one for all. None: no text.
        priors, seed, configs: as for `make_request`.

    Raises `InputError` if a prior cannot keep these codes, or does not support a setting.
    """
    check_value("num_completions", num_completions, NumSamples)
    for prior in priors:
        check_keeps(prior, masks)
    if labels is None and conditions_of(priors).num_classes:
        labels = NO_LABEL
    (num_pictures,) = {len(grid) for grid in codes}
    request = make_request(priors, num_pictures, labels, seed, configs, "pictures", prompts)
    known = Known(codes, tuple(mask.expand_as(grid) for mask, grid in zip(masks, codes, strict=True)))
    return request._replace(
        num_samples=num_pictures * num_completions,
        condition=request.condition.each(lambda part: part.repeat_interleave(num_completions, 0)),
        known=known,
        roughly=any(prior.keeps == "roughly" for prior in priors),
        of_each=num_completions,
        prompts=tuple(prompt for prompt in request.prompts for _ in range(num_completions)),
    )
