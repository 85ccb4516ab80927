"""A prior that draws waves: the 256 µ-law classes of one sample after another, given features.

Shapes: b batch, T samples.
"""

import copy
from typing import Any, cast

import torch

from codegrid.codes import Condition, Grid, Losses, Moment
from codegrid.noise import Noise
from codegrid.padding import counted
from codegrid.sampling_config import SamplingConfig

from .mu_law import CLASSES, from_classes, to_classes


def loss_of_wave(prior: Any, x: torch.Tensor, given: Condition, moment: Moment | None) -> torch.Tensor:
    """Return the mean nats () of a sample's class, of waves x (b, 1, T) up to `given.lengths`."""
    losses: Losses = _of_length(prior, x.shape[2])((to_classes(x[:, 0]),), given, moment)
    return losses.total


def nats_of_wave(prior: Any, x: torch.Tensor, given: Condition) -> torch.Tensor:
    """Return the nats (b, T) of the class of each sample of x (b, 1, T), 0 after `given.lengths`."""
    (nats,) = _of_length(prior, x.shape[2]).nll((to_classes(x[:, 0]),), given)
    if given.lengths is not None:
        nats = nats * counted(given.lengths.to(nats.device), nats.shape[1])
    return cast(torch.Tensor, nats)


def draw_wave(prior: Any, length: int, given: Condition, noise: Noise) -> torch.Tensor:
    """Draw waves (b, 1, T) of this length."""
    *_, last = _of_length(prior, length).sample(given, noise, SamplingConfig())
    (classes,) = last.codes
    return from_classes(classes)[:, None]


def _of_length(prior: Any, length: int) -> Any:
    """Return a prior for waves of this length, which shares all weights."""
    if (length,) == prior.layout[-1].shape:
        return prior
    other = copy.copy(prior)
    other.layout = (Grid((length,), CLASSES),)
    return other
