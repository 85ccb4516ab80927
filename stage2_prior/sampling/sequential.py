"""Ancestral sampling: p(z) = Π p(z_i | z_<i), step by step in the order of the prior.

A step is one code, or many for priors that draw a grid at once. `sample_sequential` uses only `prior.steps(...)`, and
`PlainSteps` only `prior.logits(...)`; both are described in `codegrid.protocols`.

Shapes: b batch, n sites of a step, m codes of several steps, K num_embeddings, *shape the sites of a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from codegrid.codes import Codes, Condition, Known, Layout, Progress
from codegrid.drawn_priors import Sequential, Steps
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.sampling_config import SamplingConfig

from .checks import check_request, flatten, spread_known, start_grids, with_hidden
from .logits import sample_from_logits

Order = Sequence[tuple[int, range]]
Fit = Callable[[int], Tensor]


@torch.no_grad()
def sample_sequential(
    prior: Sequential,
    given: Condition,
    noise: Noise,
    config: SamplingConfig,
    known: Known | None = None,
    backend: str = "auto",
    watch: bool = False,
) -> Iterator[Progress]:
    """Draw `noise.count` samples, and yield the progress; the last item is the result.

    Args:
        prior: a prior in eval mode.
        given: the condition of each sample.
        noise: sample i follows from its own numbers alone, in whatever batch it is drawn.
        config: how codes are drawn from logits.
        known: codes to keep: those of the first steps.
        backend: one of `BACKENDS`; all draw the same codes, up to rounding.
        watch: yield at the end of each row as well, and not only at the end.

    Raises `InputError` if the prior does not support what is given.
    """
    check_request(prior, given, config)
    config = config.completed_by(prior)
    known = spread_known(known, prior.layout, noise.count, prior.device)
    codes, drawn = start_grids(prior.layout, noise.count, prior.device, known)
    if not all(bool(mark.all()) for mark in drawn):
        yield from _take_steps(prior, given, noise, config, known, backend, watch, codes, drawn)
    for mark in drawn:
        mark.fill_(True)
    yield Progress(codes, drawn, 1.0)


class Drawing(NamedTuple):
    """Tensors (b, sites) of each grid, from which codes are drawn and into which they are written.

    Steps may have a method `draw(drawing, begin, end)` that draws the codes of the steps from `begin` to `end`; all
    codes before those are in `drawing`. With guidance, the second half of the steps' batch is without labels.
    """

    codes: list[Tensor]  # int64
    kept: list[Tensor] | None  # bool: codes that stay as they are, or as `fit` makes them
    uniforms: list[Tensor]  # in [0, 1)
    config: SamplingConfig
    fit: Fit | None = None  # returns the codes to keep (b, n) of a grid whose turn it is


def _take_steps(
    prior: Sequential,
    given: Condition,
    noise: Noise,
    config: SamplingConfig,
    known: Known | None,
    backend: str,
    watch: bool,
    codes: Codes,
    drawn: tuple[Tensor, ...],
) -> Iterator[Progress]:
    """Draw unknown codes into `codes`; with `watch`, mark them in `drawn`, and yield except after the last step."""
    times = 1 + config.guided
    steps = prior.steps(with_hidden(given) if config.guided else given, times * noise.count, backend)
    order, sites, marks = steps.order, flatten(codes), flatten(drawn)
    first, mixed = (0, 0) if known is None else count_known(known, order, prior.keeps == "first")
    leading = [sites[grid][:, here.start : here.stop] for grid, here in order[:first]]
    if leading:
        steps.append(torch.cat(leading, dim=1).repeat(times, 1))
    uniforms = [noise.uniforms(f"grid {i}", grid.num_sites).to(prior.device) for i, grid in enumerate(prior.layout)]
    kept, fit = marks if first < mixed else None, None
    if kept and known and prior.keeps == "roughly":
        whole = tuple(torch.ones_like(mask) for mask in known.mask)
        spread_known(Known(known.codes, whole), prior.layout, noise.count, prior.device)  # checks all codes
        fit = partial(_fit, cast(Any, prior), known.codes, codes)
        kept = [mark.clone() for mark in marks]
        for grid, there in order[first:]:  # until its turn, no code is certain
            marks[grid][:, there.start : there.stop] = False
    drawing = Drawing(sites, kept, uniforms, config, fit)
    draw = getattr(steps, "draw", None) or partial(_draw_one_by_one, steps)  # some steps draw many codes at once
    shown = first
    for end in range(first + 1, len(order) + 1):
        if end < len(order) and not (watch and _ends_row(order, end - 1, prior.layout)):
            continue
        draw(drawing, shown, end)
        if end == len(order):
            return
        for of_grid, there in order[shown:end]:
            marks[of_grid][:, there.start : there.stop] = True
        shown = end
        yield Progress(codes, drawn, (shown - first) / (len(order) - first))


def _draw_one_by_one(steps: Steps, drawing: Drawing, begin: int, end: int) -> None:
    """Draw the codes of the steps from `begin` to `end`; `steps` must have all codes before those."""
    for number in range(begin, end):
        grid, here = steps.order[number]
        place = slice(here.start, here.stop)
        uniforms, of_all = drawing.uniforms[grid][:, place], len(steps.order)
        new = sample_from_logits(steps.next_logits(), uniforms, drawing.config, number, of_all)
        if drawing.kept is not None:
            old = drawing.codes[grid] if drawing.fit is None else drawing.fit(grid)
            new = torch.where(drawing.kept[grid][:, place], old[:, place], new)
        drawing.codes[grid][:, place] = new
        if number + 1 < len(steps.order):
            steps.append(torch.cat([new, new]) if drawing.config.guided else new)


def _fit(prior: Any, known: Codes, codes: Codes, grid: int) -> Tensor:
    """Return the codes (b, sites) of a grid that a prior fits to known ones, given those drawn of coarser grids."""
    fitted: Tensor = prior.fit(known, codes[:grid])
    return fitted.flatten(1)


class PlainSteps:
    """Steps of any prior that has `logits`, with a forward pass for each: the reference for all faster ones."""

    def __init__(self, prior: Sequential, given: Condition, batch_size: int, order: Order) -> None:
        self.prior, self.given, self.order = prior, given, order
        self.codes, _ = start_grids(prior.layout, batch_size, prior.device)
        self.sites = flatten(self.codes)
        self.position = 0

    def next_logits(self) -> Tensor:
        """Return the logits (b, n, K) of the next step."""
        grid, here = self.order[self.position]
        logits = self.prior.logits(self.codes, self.given)[grid].flatten(2)[:, :, here.start : here.stop]
        return logits.mT.contiguous()

    def append(self, codes: Tensor) -> None:
        """Append the codes (b, n) of the next step, or (b, m) of several."""
        while codes.shape[1]:
            grid, here = self.order[self.position]
            self.sites[grid][:, here.start : here.stop] = codes[:, : len(here)]
            codes = codes[:, len(here) :]
            self.position += 1


def site_by_site(layout: Layout) -> Order:
    """Return the order in which all codes of a site are drawn before the next: (0, 0:1) (1, 0:1) (0, 1:2) ...

    Grids of another shape follow when those before are finished.
    """
    order = []
    for _, group in groupby(range(len(layout)), key=lambda number: layout[number].shape):
        numbers = list(group)
        order += [(grid, range(site, site + 1)) for site in range(layout[numbers[0]].num_sites) for grid in numbers]
    return order


def _ends_row(order: Order, number: int, layout: Layout) -> bool:
    """Return whether a step completes a grid, or a row of all grids; in grids of one axis, each site is a row."""
    grid, here = order[number]
    shape = layout[grid].shape
    row = shape[-1] if len(shape) > 1 else 1
    return len(here) > 1 or (here.stop % row == 0 and order[number + 1][1] != here)


def count_known(known: Known, order: Order, only_first: bool = True) -> tuple[int, int]:
    """Return how many first steps are known in all samples, and how many are known, perhaps partly, in any sample.

    Raises `InputError` if only the first codes can be kept, and a sample knows codes of a step, but not all codes of
    the steps before it in grids of the same shape. Those of another shape may be drawn around it: as a prior of its own
    would, they do not see it.
    """
    numbers = [torch.zeros(mask[0].numel(), dtype=torch.int64) for mask in known.mask]  # the step of each code
    for number, (grid, here) in enumerate(order):
        numbers[grid][here.start : here.stop] = number
    first, last = len(order), -1
    for _, group in groupby(zip(numbers, known.mask, strict=True), key=lambda pair: pair[1].shape):
        steps, masks = zip(*group, strict=True)
        step, mask = torch.cat(steps), torch.cat([kept.flatten(1) for kept in masks], dim=1).cpu()
        furthest = torch.where(mask, step, -1).amax(1)  # (b,)
        wrong = (~mask & (step < furthest[:, None])).any(1)
        if only_first and wrong.any():
            grid, here = order[int(furthest[wrong][0])]
            where = f"site {here.start}" + (f" of grid {grid}" if len(known.mask) > 1 else "")
            raise InputError(
                f"`known` keeps {where} in raster order, but not all before it: codes are drawn in that order, so only "
                "the first ones can be kept"
            )
        first, last = min(first, int(torch.where(mask, len(order), step).min())), max(last, int(furthest.max()))
    return first, last + 1
