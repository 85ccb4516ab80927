"""Waves that a prior inside of a tokenizer draws, and what it is given of the codes.

Shapes: b batch, C channels of the features that the prior is given, T samples.
"""

import copy
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F

from codegrid.budget import check_memory
from codegrid.codes import Condition, Grid, Sides
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.registry import TABLES
from codegrid.sampling_config import SamplingConfig

from .code_tokenizer import make_decoder
from .mu_law import CLASSES, from_classes


def names_of_options(decoder: str | None) -> set[str]:
    """Return the names of the options of a prior of the table; none without one.

    Raises `InputError` if the table has none of this name.
    """
    if decoder is None:
        return set()
    TABLES["prior"].check(decoder, "decoder")
    return {field.name for field in fields(TABLES["prior"].options(decoder))}


def make_prior(decoder: str, size: Sides, channels: int, num_classes: int, options: dict[str, Any]) -> Any:
    """Return a new prior that draws waves of this size (T,), given features of so many channels, and speakers."""
    prior = make_decoder(decoder, (Grid(size, CLASSES),), channels, {"num_classes": num_classes, **options})
    if num_classes and not prior.conditions.unlabelled:
        raise InputError("`label_dropout` 0: a decoder must also learn to draw without a speaker: give more")
    return prior


def prior_of(prior: Any, length: int) -> Any:
    """Return a prior for waves of another length; it shares all weights."""
    if (length,) == prior.layout[-1].shape:
        return prior
    other = copy.copy(prior)
    other.layout = (Grid((length,), CLASSES),)
    return other


def without_codes(features: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return what a prior is given (b, C, T) of codes, as nothing where they are hidden, (b,) bool."""
    return features.masked_fill(hidden.to(features.device)[:, None, None], 0)


@torch.no_grad()
def draw_waves(prior: Any, given: Condition, noise: Noise) -> torch.Tensor:
    """Return waves (b, 1, T) drawn by a prior, given labels and features (b, C, T), at temperature 1."""
    (features,) = given.features
    *_, last = prior_of(prior, features.shape[2]).sample(given, noise.of("wave"), SamplingConfig())
    (classes,) = last.codes
    return from_classes(classes)[:, None].to(features.dtype)


def draw_clips(
    prior: Any, labels: torch.Tensor | None, features: Sequence[torch.Tensor], noise: Noise
) -> list[torch.Tensor]:
    """Return waves (1, 1, T) of different lengths, drawn together, given features (1, C, T); each as if drawn alone.

    No sample depends on later ones, so shorter clips are followed by silence, which is cut off again.
    """
    lengths = [each.shape[2] for each in features]
    needed = max(lengths) * sum(each.shape[1] * each.element_size() for each in features)
    check_memory("the features of these clips", 2 * needed, "give shorter ones, or a smaller `batch_size`")
    padded = torch.cat([F.pad(each, (0, max(lengths) - each.shape[2])) for each in features])
    waves = draw_waves(prior, Condition(labels, features=(padded,)), NoiseOfClips(noise, lengths))
    return [wave[None, :, :length] for wave, length in zip(waves, lengths, strict=True)]


class NoiseOfClips(Noise):
    """Noise for clips of different lengths: each has the numbers that it has alone, and then zeros."""

    def __init__(self, noise: Noise, lengths: Sequence[int]) -> None:
        super().__init__(noise.seed, noise.first_index, noise.count, noise.device, noise.purpose)
        self.lengths = lengths

    def of(self, *purpose: str | int) -> "NoiseOfClips":
        """Return independent noise for a part of the work."""
        return NoiseOfClips(super().of(*purpose), self.lengths)

    def uniforms(self, name: str, *shape: int) -> torch.Tensor:
        """Return (b, T) in [0, 1) for the longest clip's T."""
        (longest,) = shape
        rows = []
        for number, length in enumerate(self.lengths):
            own = Noise(self.seed, self.first_index + number, 1, self.device, self.purpose).uniforms(name, length)
            rows.append(F.pad(own, (0, longest - length)))
        return torch.cat(rows)
