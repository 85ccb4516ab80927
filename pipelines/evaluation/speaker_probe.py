"""The speaker, told from codes: how much of the voice they hold, which a conversion then cannot change.

Shapes: n clips, t codes of a clip, q grids, V entries of all grids, s speakers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from codegrid.codes import Layout

from .clip_codes import ClipCodes

PENALTY = 1e-3  # of the squared weights: clips can be fewer than codes
STEPS = 200  # of the optimizer, at most


def histograms(found: Sequence[ClipCodes], layout: Layout) -> torch.Tensor:
    """Return how often each clip has each code: (n, V) float64, the square roots of shares, for each grid."""
    return torch.stack([histogram(codes.unbind(1), layout) for _, codes in found])


def histogram(codes: Sequence[torch.Tensor], layout: Layout) -> torch.Tensor:
    """Return how often each code occurs in the sites (t,) of each grid: (V,) float64, the square roots of shares."""
    pairs = zip(codes, layout, strict=True)
    counts = [sites.bincount(minlength=grid.num_embeddings).double() for sites, grid in pairs]
    return torch.cat([(each / each.sum()).sqrt() for each in counts])


def probe_speakers(
    train: Sequence[ClipCodes], test: Sequence[ClipCodes], layout: Layout, speakers: Sequence[str]
) -> dict[str, Any]:
    """Return how often a linear classifier names the speaker of a clip by the histogram of its codes.

    It is fitted on some clips and scored on others; `commonest_speaker` is the share of the speaker with most training
    clips, which needs no codes.
    """
    x, others = (histograms(part, layout) for part in (train, test))
    labels, wanted = (torch.tensor([speakers.index(each.clip.speaker) for each in part]) for part in (train, test))
    weights = fit_linear(x, labels, len(speakers))
    named = (with_bias(others) @ weights).argmax(1)
    commonest = labels.bincount(minlength=len(speakers)).argmax()
    return {
        "speaker_accuracy": float((named == wanted).double().mean()),
        "commonest_speaker": float((wanted == commonest).double().mean()),
        "speaker_clips": len(wanted),
    }


def fit_linear(x: torch.Tensor, labels: torch.Tensor, count: int) -> torch.Tensor:
    """Return the weights (V + 1, s) of a logistic regression of labels (n,) on x (n, V) float64."""
    inputs = with_bias(x)
    weights = torch.zeros(inputs.shape[1], count, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = cross_entropy(inputs @ weights, labels) + PENALTY * weights.square().sum() / 2
        torch.autograd.backward(value)
        return float(value.detach())

    optimizer.step(loss)
    return weights.detach()


def with_bias(x: torch.Tensor) -> torch.Tensor:
    """Return x (n, V) with a column of ones."""
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
