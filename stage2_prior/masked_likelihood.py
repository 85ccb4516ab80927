"""The likelihood of priors that draw many sites at once: a bound on it.

Sites that are drawn in a random order, n_t of the k_t hidden ones at step t, cost at most

    −log p(z) ≤ Σ_t n_t a(k_t),    a(k) = the mean −log p(z_i | z outside M) over masks M of k sites and over i in M.

With one site at each step this is the order-agnostic bound (Uria et al. 2014, arXiv 1310.1757); the fewer the steps,
the higher it is, by what sites cost that are drawn without seeing each other. Samples that are drawn in another order,
by confidence for example, or under guidance or a temperature, have no likelihood that could be computed.

Shapes: b batch, s sites of all grids, *shape the sites of a grid.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from codegrid.codes import Codes, Condition
from codegrid.drawn_priors import Masked
from codegrid.noise import Noise
from codegrid.sampling_config import MaskSchedule

from .likelihood import cross_entropy
from .sampling.masked import first_hidden, hide
from .sampling.schedules import hidden_after

MASKS = 8  # at most, of each sample: averaged over many samples, more would not be more exact


@torch.no_grad()
def random_order_nats(
    prior: Masked, codes: Codes, given: Condition, noise: Noise, steps: int, schedule: MaskSchedule
) -> tuple[Tensor, ...]:
    """Return nats (b, *shape) at each site, whose sum is an unbiased estimate of the bound for random orders.

    Args:
        prior: a prior in eval mode.
        codes: (b, *shape) of each grid.
        given: the condition of each sample.
        noise: decides the masks: one for each step, or for up to `MASKS` steps, spread evenly over the sites drawn.
        steps: how many.
        schedule: how many sites are hidden after each of them.
    """
    sites, device = sum(grid.num_sites for grid in prior.layout), codes[0].device
    hidden = torch.tensor([sites, *hidden_after(sites, steps, schedule)])  # before each step, and at the end 0
    groups = torch.tensor([before - after for before, after in pairwise(hidden.tolist())])
    count = min(steps, MASKS)
    total = torch.zeros(len(codes[0]), sites, device=device)
    everywhere = torch.ones_like(total, dtype=torch.bool)
    for number in range(count):
        part = noise.of("mask", number)
        step = torch.full((len(codes[0]),), number)
        weights = groups[step].to(total)
        if count < steps:  # the step at which one of an even share of the sites is drawn
            place = (number + part.uniforms("step").cpu()) * sites / count
            step = torch.searchsorted(groups.cumsum(0).double(), place.double(), right=True).clamp_max(steps - 1)
            weights = torch.full_like(weights, sites / count)
        size = hidden[step].to(device)
        masked = first_hidden(part.uniforms("sites", sites).to(device), everywhere, size)
        nats = nats_of_hidden(prior, codes, given, masked)
        total += torch.where(masked, nats * (weights / size)[:, None], 0)
    parts = total.split([grid.num_sites for grid in prior.layout], dim=1)
    return tuple(part.unflatten(1, grid.shape) for part, grid in zip(parts, prior.layout, strict=True))


def nats_of_hidden(prior: Masked, codes: Codes, given: Condition, masked: Tensor) -> Tensor:
    """Return −log p (b, s) of all codes, given those that are not `masked` (b, s)."""
    parts = masked.split([grid.num_sites for grid in prior.layout], dim=1)
    shown = [~part.unflatten(1, grid.shape) for part, grid in zip(parts, prior.layout, strict=True)]
    logits = prior.hidden_logits(hide(codes, shown), given)
    pairs = zip(logits, codes, strict=True)
    return torch.cat([cross_entropy(of_grid.mT, grid.flatten(1)) for of_grid, grid in pairs], dim=1)
