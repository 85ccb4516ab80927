"""Priors as judges: under which of several texts codes are likeliest, and how well they fit what was asked for.

Shapes: b samples, m texts, t words of a text, *shape the sites of each grid.
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


def total_nats(priors: Sequence[Prior], codes: Codes, given: Condition, noise: Noise) -> Tensor:
    """Return −ln p (b,) of whole samples, or a bound on it, summed over those priors that can be asked for something.

    Args:
        priors: in eval mode; those that cannot be asked cost the same whatever is given.
        codes: (b, *shape) of all grids of the tokenizer.
        given: the condition of each sample.
        noise: of a bound; the same noise makes bounds comparable.

    Raises `InputError` if a prior has no likelihood.
    """
    total = torch.zeros((), device=codes[0].device)
    for prior in priors:
        if not prior.conditions.is_asked:
            continue
        own = tuple(codes[grid].to(prior.device) for grid in prior.grids)
        condition = condition_of(prior, given, dict(enumerate(codes)), alone=False)
        nats = prior.nll(own, condition, noise.of("grid", prior.grids[0]))
        if nats is None:
            raise InputError(f"`prior`: a {type(prior).__name__} has no likelihood to rank by")
        total = total + sum(grid.to(widest(grid.device)).flatten(1).sum(1) for grid in nats)
    return total


def nats_of_texts(priors: Sequence[Prior], codes: Codes, given: Condition, texts: Tensor, noise: Noise) -> Tensor:
    """Return −ln p(codes | text) (b, m) of each sample under each of the texts (m, t), or bounds with shared noise."""
    rows = [given._replace(text=text.expand(len(codes[0]), -1)) for text in texts]
    return torch.stack([total_nats(priors, codes, each, noise) for each in rows], dim=1)


def fit(priors: Sequence[Prior], codes: Codes, given: Condition, noise: Noise) -> Tensor:
    """Return ln p(codes | label or text) − ln p(codes | none) (b,) of each sample, or an estimate from two bounds."""
    return total_nats(priors, codes, given.hidden(), noise) - total_nats(priors, codes, given, noise)
