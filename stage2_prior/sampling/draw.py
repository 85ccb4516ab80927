"""Drawing samples from a prior, or from several that share the grids of one tokenizer, coarse to fine.

Shapes: n samples, b batch, *shape the sites of a grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor
from typing_extensions import Unpack

from codegrid.codes import Codes, Condition, Known, Layout, Progress
from codegrid.errors import InputError
from codegrid.limits import BatchSize, NumSamples, Seed, check_value
from codegrid.noise import Noise
from codegrid.protocols import Prior
from codegrid.sampling_config import DrawingSettings, SamplingConfig, sampling_configs
from codegrid.stage2_prior.conditions import conditions_of
from codegrid.stage2_prior.written import Prompts

from .checks import spread_known, start_grids


def sample(
    prior: Prior | Sequence[Prior],
    num_samples: int,
    labels: Sequence[int | str] | Tensor | int | str | None = None,
    seed: int = 0,
    first_index: int = 0,
    batch_size: int = 128,
    known: Known | None = None,
    prompts: Prompts | None = None,
    codes: Codes = (),
    actions: Tensor | None = None,
    backend: str = "auto",
    **settings: Unpack[DrawingSettings],
) -> Codes:
    """Draw codes (n, *shape) of every grid, on the prior's device.

    Args:
        prior: a prior in eval mode, or several priors of one tokenizer, coarse to fine.
        num_samples: n.
        labels: numbers or names of classes, or `"none"`; one for each sample or one for all; by default all classes
            in turn, or with prompts no particular one.
        seed, first_index: sample i follows from (seed, first_index + i) alone.
        batch_size: samples drawn at once.
        known: sites to keep, and their codes, for each grid that is drawn.
        prompts: texts, for priors over texts; one for each sample or one for all. None: no text.
        codes: coarser grids or earlier frames, for a prior that needs them: (n, *shape), or (1, *shape) for all.
        actions: (n, frames), for a prior over frames.
        backend: auto, plain (one forward pass per step: the reference), torch (nothing is computed twice), native,
            graph or compiled; all draw the same codes, up to rounding.
        settings: fields of `SamplingConfig`: one value for all priors, or a list with one for each.

    Raises `InputError` if a prior needs something that is missing, or does not support what is given.

    Examples:
        >>> from codegrid import GatedPixelCNN, Grid
        >>> prior = GatedPixelCNN((Grid((7, 7), 512),), num_classes=10, num_layers=2).eval()
        >>> (codes,) = sample(prior, 4, labels=[3], temperature=0.9, top_k=50, backend="torch")
        >>> codes.shape
        torch.Size([4, 7, 7])
    """
    for name, value, hint in (
        ("num_samples", num_samples, NumSamples), ("seed", seed, Seed), ("first_index", first_index, Seed),
        ("batch_size", batch_size, BatchSize),
    ):  # fmt: skip
        check_value(name, value, hint)
    priors = cast("list[Prior]", list(prior) if isinstance(prior, list | tuple) else [prior])
    configs = sampling_configs(len(priors), **settings)
    layout = layout_of(priors)
    device = priors[0].device
    given = (
        conditions_of(priors)
        .resolve(labels, num_samples, first_index=first_index, prompts=prompts)
        ._replace(
            codes=tuple(_for_all(grid, num_samples, "codes") for grid in codes),
            actions=None if actions is None else _for_all(actions, num_samples, "actions"),
        )
    )
    for one, config in zip(priors, configs, strict=True):
        one.conditions.check_guidance(config.guidance_scale, given)
    known = spread_known(known, layout, num_samples, device)
    batches = []
    for first in range(0, num_samples, batch_size):
        rows = slice(first, min(first + batch_size, num_samples))
        noise = Noise(seed, first_index + first, rows.stop - first, device)
        of_rows = None if known is None else known.rows(rows)
        (*_, last) = draw(priors, given.rows(rows), noise, configs, of_rows, backend)
        batches.append(last.codes)
    return tuple(torch.cat(grids) for grids in zip(*batches, strict=True))


def draw(
    priors: Sequence[Prior],
    given: Condition,
    noise: Noise,
    configs: Sequence[SamplingConfig],
    known: Known | None = None,
    backend: str = "auto",
    watch: bool = False,
) -> Iterator[Progress]:
    """Draw `noise.count` samples of all grids of all priors, and yield the progress; the last item is the result.

    Args:
        priors: coarse to fine. Each is given those grids of the earlier ones that it is conditioned on.
        given: the condition, including coarser grids that are not drawn here.
        noise: each prior uses a part of it, chosen by the number of its first grid.
        configs: one for each prior.
        known: sites to keep, over the grids of all priors.
        backend: one of `BACKENDS`.
        watch: also yield intermediate results.

    Raises `InputError` if a prior needs something that is missing, or does not support what is given.
    """
    layout = layout_of(priors)
    known = spread_known(known, layout, noise.count, priors[0].device)
    codes, drawn = map(list, start_grids(layout, noise.count, priors[0].device, known))
    finished: dict[int, Tensor] = {}
    first, before, sites = 0, 0, sum(grid.num_sites for grid in layout)
    for prior, config in zip(priors, configs, strict=True):
        own = slice(first, first + len(prior.grids))
        first = own.stop
        kept = None if known is None else Known(known.codes[own], known.mask[own])
        if kept is not None and prior.keeps == "none" and any(bool(mask.any()) for mask in kept.mask):
            raise InputError(f"`known`: a {type(prior).__name__} keeps no sites; leave it out")
        condition = condition_of(prior, given, finished, alone=len(priors) == 1)
        part, to_draw = noise.of("grid", prior.grids[0]), sum(grid.num_sites for grid in prior.layout)
        for progress in prior.sample(condition, part, config, kept, backend, watch):
            codes[own], drawn[own] = progress.codes, progress.drawn
            if watch:
                yield Progress(tuple(codes), tuple(drawn), (before + progress.done * to_draw) / sites)
        before += to_draw
        finished.update(zip(prior.grids, codes[own], strict=True))
    if not watch:
        yield Progress(tuple(codes), tuple(drawn), 1.0)


def layout_of(priors: Sequence[Prior]) -> Layout:
    """Return the grids that several priors draw together.

    Raises `InputError` if they are not in order, coarse to fine.
    """
    if not priors:
        raise InputError("`prior` is empty: give at least one")
    numbers = [number for prior in priors for number in prior.grids]
    if numbers != sorted(set(numbers)):
        raise InputError(f"`prior`: they draw the grids {', '.join(map(str, numbers))}; give them coarse to fine")
    return tuple(grid for prior in priors for grid in prior.layout)


def condition_of(prior: Prior, given: Condition, finished: dict[int, Tensor], alone: bool) -> Condition:
    """Return the part of a condition that one of several priors accepts, with the coarser grids drawn so far."""
    coarser = tuple(finished[number] for number in prior.given_grids if number in finished)
    given = given._replace(codes=(*given.codes, *coarser)).to(prior.device)
    if len(given.codes) < len(prior.given_grids):
        numbers = ", ".join(map(str, prior.given_grids))
        raise InputError(f"`codes`: this prior needs the grids {numbers}; give them, or put their priors before it")
    if not alone:  # labels and texts may be meant for another prior
        conditions = prior.conditions
        labels, text = given.labels if conditions.num_classes else None, given.text if conditions.num_words else None
        given = given._replace(labels=labels, text=text)
    return given


def _for_all(tensor: Tensor, count: int, name: str) -> Tensor:
    """Expand a tensor with one row for each sample, or one for all, to (n, ...)."""
    if len(tensor) not in (1, count):
        raise InputError(f"`{name}`: {len(tensor)} for {count} samples: give one for each, or one for all")
    return tensor.expand(count, *tensor.shape[1:])
