"""Drawing many sites at once, in any order: MaskGIT (Chang et al. 2022, arXiv 2202.04200), and absorbing diffusion.

At each step the prior says how likely each hidden code is, given those that are drawn or known. A candidate is drawn
for each hidden site, and some of the candidates stay: those that the prior is most confident of, or, in an order of
sites at random, which is the ancestral sampler of absorbing diffusion (Austin et al. 2021, arXiv 2107.03006), any.

`sample_masked` uses only `prior.hidden_logits(...)`, described in `codegrid.protocols`.

Shapes: b batch, n sites of a grid, s sites of all grids, K num_embeddings, *shape the sites of a grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from codegrid.codes import HIDDEN, Codes, Condition, Known, Layout, Progress
from codegrid.devices import widest
from codegrid.drawn_priors import Masked
from codegrid.noise import Noise
from codegrid.sampling_config import MaskSchedule, SamplingConfig

from .backends import choose_backend
from .checks import check_request, flatten, spread_known, start_grids, with_hidden
from .logits import draw_codes, guide, probabilities_of
from .schedules import halton_ranks, hidden_after


@torch.no_grad()
def sample_masked(
    prior: Masked,
    given: Condition,
    noise: Noise,
    config: SamplingConfig,
    known: Known | None = None,
    backend: str = "auto",
    watch: bool = False,
) -> Iterator[Progress]:
    """Draw `noise.count` samples in a few steps, and yield the progress; the last item is the result.

    A sample with fewer unknown sites than there are steps begins later, and draws one of them at each step.

    Args:
        prior: a prior in eval mode.
        given: the condition of each sample.
        noise: sample i follows from its own numbers alone, in whatever batch it is drawn.
        config: how codes are drawn from logits; the prior's own settings stand in for None.
        known: codes to keep, at any sites.
        backend: one of `BACKENDS` that the prior has: each step is one pass through the network.
        watch: yield at the end of each step as well, and not only of the last one.

    Raises `InputError` if the prior does not support what is given, or there are more steps than sites.
    """
    check_request(prior, given, config)
    config, backend = config.completed_by(prior), choose_backend(backend, prior)
    known = spread_known(known, prior.layout, noise.count, prior.device)
    codes, drawn = start_grids(prior.layout, noise.count, prior.device, known)
    sites, marks = flatten(codes), flatten(drawn)
    sizes = [grid.num_sites for grid in prior.layout]
    steps, schedule = config.num_inference_steps, config.mask_schedule
    assert steps is not None and schedule is not None, "own settings of the prior that sampling needs"
    hidden = ~torch.cat(marks, dim=1)
    counts = _count_draws(hidden.sum(1).tolist(), steps, schedule)
    fixed = _fixed_order(prior.layout, noise, config)
    asked = with_hidden(given) if config.guided else given
    for step in range(steps):
        if not counts[:, step].any():  # no sample has begun
            continue
        shown = hide(codes, drawn)
        twice = tuple(torch.cat([grid, grid]) for grid in shown) if config.guided else shown
        logits = prior.hidden_logits(twice, asked, backend)
        if config.guided:
            logits = tuple(guide(of_grid, config.guidance_at(step, steps)) for of_grid in logits)
        of_step = noise.of("step", step)
        candidates = [_draw(*each, of_step, config) for each in enumerate(logits)]
        order = fixed
        if order is None:
            order = _confidences(logits, candidates)
            if heat := (config.choice_temperature or 0.0) * (1 - (step + 1) / steps):
                gumbel = of_step.uniforms("choice", sum(sizes)).clamp_min(2.0**-54).log().neg().log().neg()
                order = order + heat * gumbel.to(prior.device)
        now = first_hidden(order, hidden, counts[:, step].to(hidden.device))
        hidden &= ~now
        for grid, place in enumerate(now.split(sizes, dim=1)):
            sites[grid].copy_(torch.where(place, candidates[grid], sites[grid]))
            marks[grid] |= place
        if watch and step + 1 < steps:
            yield Progress(codes, drawn, (step + 1) / steps)
    yield Progress(codes, drawn, 1.0)


def hide(codes: Codes, shown: Sequence[Tensor]) -> Codes:
    """Return codes (b, *shape) that are HIDDEN except where `shown` (b, *shape) bool is True."""
    return tuple(grid.masked_fill(~mark, HIDDEN) for grid, mark in zip(codes, shown, strict=True))


def _count_draws(unknown: Sequence[int], steps: int, schedule: MaskSchedule) -> Tensor:
    """Return how many sites each sample draws at each step (b, steps), from its number of unknown sites."""
    rows = []
    for count in unknown:
        own = min(steps, count)
        left = [count, *hidden_after(count, own, schedule)]
        rows.append([0] * (steps - own) + [before - after for before, after in pairwise(left)])
    return torch.tensor(rows)


def _fixed_order(layout: Layout, noise: Noise, config: SamplingConfig) -> Tensor | None:
    """Return numbers (b, s), the highest of sites to draw first, if the order does not depend on the codes."""
    if config.unmask_order == "random":
        return noise.uniforms("order", sum(grid.num_sites for grid in layout))
    if config.unmask_order == "halton":
        ranks = halton_ranks(layout).to(noise.device)
        return -ranks.to(widest(noise.device)).expand(noise.count, -1)
    return None


def _draw(grid: int, logits: Tensor, noise: Noise, config: SamplingConfig) -> Tensor:
    """Draw a code for each site (b, n) of a grid from its logits (b, n, K)."""
    if config.temperature == 0:
        return logits.argmax(-1)
    uniforms = noise.uniforms(f"grid {grid}", logits.shape[1]).to(logits.device)
    return draw_codes(probabilities_of(logits, config), uniforms)


def _confidences(logits: Sequence[Tensor], candidates: Sequence[Tensor]) -> Tensor:
    """Return log p (b, s) of the candidates (b, n), before temperature, top-k and top-p."""
    pairs = zip((of_grid.to(widest(of_grid.device)) for of_grid in logits), candidates, strict=True)
    return torch.cat([of_grid.log_softmax(-1).gather(-1, codes[..., None]).squeeze(-1) for of_grid, codes in pairs], 1)


def first_hidden(order: Tensor, hidden: Tensor, counts: Tensor) -> Tensor:
    """Return marks (b, s) of the hidden sites with the highest numbers, exactly `counts` (b,) of each sample."""
    last = torch.finfo(torch.float32).min
    places = order.masked_fill(~hidden, last).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (places < counts[:, None]) & hidden
