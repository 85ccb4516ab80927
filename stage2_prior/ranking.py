"""Priors as judges: how likely codes are under what was asked for, and how much likelier than under nothing.

Shapes: b samples, *shape the sites of each grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from codegrid.codes import Codes, Condition
from codegrid.devices import widest
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.protocols import Prior

from .sampling.draw import condition_of


def check_likelihood(priors: Sequence[Prior]) -> None:
    """Raise `InputError` if one of the priors that can be asked for something has no likelihood."""
    for prior in priors:
        if prior.conditions.is_asked and prior.likelihood == "none":
            raise InputError(f"`prior`: a {type(prior).__name__} has no likelihood to rank by")


@torch.no_grad()
def total_nats(priors: Sequence[Prior], codes: Codes, given: Condition, noise: Noise) -> Tensor:
    """Return −ln p (b,) of whole samples, or a bound on it, summed over those priors that can be asked for something.

    Args:
        priors: of one tokenizer, coarse to fine; those that cannot be asked cost the same whatever is given.
        codes: (b, *shape) of all grids of the tokenizer.
        given: the condition of each sample.
        noise: of a bound; bounds with the same noise can be compared.

    Raises `InputError` if a prior has no likelihood.
    """
    check_likelihood(priors)
    total = torch.zeros(len(codes[0]), dtype=widest(priors[0].device), device=priors[0].device)
    for prior in priors:
        if not prior.conditions.is_asked:
            continue
        own = tuple(codes[grid].to(prior.device) for grid in prior.grids)
        condition = condition_of(prior, given, dict(enumerate(codes)), alone=False)
        nats = prior.nll(own, condition, noise.of("grid", prior.grids[0]))
        assert nats is not None
        for grid in nats:
            total += grid.to(total.dtype).flatten(1).sum(1)
    return total


def fit(priors: Sequence[Prior], codes: Codes, given: Condition, noise: Noise) -> Tensor:
    """Return ln p(codes | label or text) − ln p(codes | none) (b,) of each sample, or an estimate from two bounds."""
    return total_nats(priors, codes, given.hidden(), noise) - total_nats(priors, codes, given, noise)
