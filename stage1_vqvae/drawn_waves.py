"""A prior that draws waves: the 256 µ-law classes of one sample after another, given features.

Shapes: b batch, C channels of the features, T samples.
"""

import copy
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, cast

import torch
import torch.nn.functional as F

from codegrid.budget import check_memory
from codegrid.codes import Codes, Condition, Grid, Losses, Moment, Sides
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.padding import counted
from codegrid.registry import TABLES
from codegrid.sampling_config import SamplingConfig

from .code_tokenizer import make_decoder
from .mu_law import CLASSES, from_classes, to_classes


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


def without_codes(features: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return the features (b, C, T) of codes that a prior is given, 0 for items whose codes are hidden, (b,) bool."""
    return features.masked_fill(hidden.to(features.device)[:, None, None], 0)


def drop_codes(features: torch.Tensor, share: float, moment: Moment | None) -> torch.Tensor:
    """Hide the codes of a share of the items in training."""
    if moment is None or not share:
        return features
    return without_codes(features, moment.noise.uniforms("code dropout") < share)


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


@torch.no_grad()
def decode_clips(
    tokenizer: Any, codes: Sequence[Codes], lengths: Sequence[int], given: Condition, noise: Noise
) -> list[torch.Tensor]:
    """Return waves (1, 1, T) for the codes (1, t) of clips of different lengths T, each as if it were alone.

    The tokenizer is a `WaveVQVAE`; the speakers and the noise are those of its `decode`. A decoder that draws computes
    all clips together: no sample depends on later ones, so shorter clips are followed by silence, which is cut off.
    """
    outputs = []
    for number, (grids, length) in enumerate(zip(codes, lengths, strict=True)):
        own = Condition(None if given.labels is None else given.labels[number : number + 1])
        outputs.append(tokenizer.outputs(tokenizer.quantizer.look_up(grids), own)[..., :length])
    if tokenizer.prior is None:
        return [tokenizer.reconstruction.image(each) for each in outputs]
    longest = max(lengths)
    needed = longest * sum(each.shape[1] * each.element_size() for each in outputs)
    check_memory("the features of these clips", 2 * needed, "give shorter ones, or a smaller `batch_size`")
    features = torch.cat([F.pad(each, (0, longest - each.shape[2])) for each in outputs])
    drawn = Condition(given.labels if tokenizer.num_classes else None, features=(features,))
    waves = draw_wave(tokenizer.prior, longest, drawn, NoiseOfClips(noise.of("wave"), lengths))
    return [wave[None, :, :length].to(features.dtype) for wave, length in zip(waves, lengths, strict=True)]


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


def _of_length(prior: Any, length: int) -> Any:
    """Return a prior for waves of this length, which shares all weights."""
    if (length,) == prior.layout[-1].shape:
        return prior
    other = copy.copy(prior)
    other.layout = (Grid((length,), CLASSES),)
    return other
