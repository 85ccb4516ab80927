"""A bound on the bits per dimension that both stages together need for an image.

    log p(x) = log Σ_z p(z) p(x | z) ≥ log p(z_q(x)) + log p(x | z_q(x))

If tokenizers are stacked, z are the codes of the uppermost one, and p(x | z) is bounded in the same way: the codes y of
the images' own tokenizer cost −log p(y | z) under the decoder of the upper one, and x costs −log p(x | y).

The prior gives p(z). A decoder that was trained as a likelihood gives p(x | z). For any other, its output μ, in grey
levels 0 ... 255, does: each value x has a logistic distribution around μ with a scale s_c for its channel, cut into the
256 values (`logistic_nats`).

Shapes: b batch, c channels, *size an image's sides.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from codegrid.codes import Codes, Condition
from codegrid.data.images import to_float
from codegrid.protocols import NO_CONDITION, Tokenizer
from codegrid.stage1_vqvae.reconstruction import logistic_nats

MIN_SCALE, MAX_SCALE = 0.01, 1000.0  # in grey levels
BINS_PER_LEVEL, MAX_RESIDUAL = 16, 512  # of the histogram of residuals that the scale is fitted to


def to_levels(outputs: torch.Tensor) -> torch.Tensor:
    """Convert decoder outputs, about [-1, 1], to μ in float64, about 0 ... 255, without clipping."""
    return (outputs.double() + 1) * 127.5


def image_nll(images: torch.Tensor, outputs: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return -log p(x | z) of each image, float64 (b,).

    Args:
        images: x, (b, c, *size) uint8.
        outputs: the decoder's outputs for z, (b, c, *size), about [-1, 1].
        scales: s, (c,), in grey levels.
    """
    residuals = images.double() - to_levels(outputs)
    scales = scales.to(residuals).view(-1, *[1] * (images.ndim - 2))
    return logistic_nats(residuals, scales, images == 0, images == 255).flatten(1).sum(1)


def fit_scales(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Return the most likely scale of each channel (c,), in grey levels, from pairs of images and decoder outputs.

    Residuals are counted in a histogram with bins of 1/16 level, so that memory does not grow with the images.
    """
    size = 2 * MAX_RESIDUAL * BINS_PER_LEVEL + 1
    counts: torch.Tensor | None = None
    for images, outputs in pairs:
        residuals = images.double() - to_levels(outputs)
        places = ((residuals + MAX_RESIDUAL) * BINS_PER_LEVEL).round().clamp(0, size - 1).long()
        kinds = (images == 0).long() + 2 * (images == 255).long()  # 0: between, 1: low, 2: high
        rows = [torch.bincount(row.flatten(), minlength=3 * size) for row in (kinds * size + places).unbind(1)]
        found = torch.stack(rows).view(-1, 3, size).cpu()
        counts = found if counts is None else counts + found
    if counts is None:
        raise ValueError("no images to fit the scales to")
    return torch.tensor([_fit_scale(of_channel) for of_channel in counts.double()], dtype=torch.float64)


def _fit_scale(counts: torch.Tensor) -> float:
    """Search log s by golden sections over the residuals counted in (3, bins)."""
    kinds, places = counts.nonzero(as_tuple=True)
    found, residuals = counts[kinds, places], places.double() / BINS_PER_LEVEL - MAX_RESIDUAL

    def cost(log_scale: float) -> float:
        nats = logistic_nats(residuals, torch.tensor(log_scale).double().exp(), kinds == 1, kinds == 2)
        return float((found * nats).sum())

    low, high, ratio = math.log(MIN_SCALE), math.log(MAX_SCALE), (math.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if cost(left) <= cost(right) else (left, high)
    return math.exp((low + high) / 2)


def nats_of_codes(codes: Codes, upper: Sequence[Any]) -> float:
    """Return Σ −log p(codes | codes of the uppermost tokenizer), as a bound if there are several upper ones."""
    nats = 0.0
    for tokenizer in upper:
        own = tokenizer.encode(codes)
        nats += float(tokenizer.nll(codes, own).double().sum())
        codes = own
    return nats


class DecoderLikelihood:
    """The mean of -log2 p(x | z) over images that are added with their codes.

    Args:
        tokenizer: the tokenizer; it computes the likelihood itself if it, or the lowest of a stack, was trained with
            one.
        scales: (c,), in grey levels, of a discretized logistic around the decoder's output. None: the tokenizer's own
            likelihood.
        description: how the likelihood is computed, as JSON values.
    """

    def __init__(self, tokenizer: Tokenizer, scales: torch.Tensor | None, description: dict[str, Any]) -> None:
        self.tokenizer, *self.upper = tokenizer.stack
        self.scales, self.description = scales, description
        self.nats, self.count = 0.0, 0

    @torch.no_grad()
    def add(self, images: torch.Tensor, codes: Codes, outputs: torch.Tensor, given: Condition = NO_CONDITION) -> None:
        """Add images (b, c, *size) uint8, their codes, the decoder's outputs for these, and what it was given."""
        x = to_float(images)
        if self.upper:  # what was decoded was drawn: the images have codes of their own
            codes = self.tokenizer.encode(x)
            outputs = self.tokenizer.decode(codes, tuple(x.shape[2:]))
            self.nats += nats_of_codes(codes, self.upper)
        if self.scales is None:
            nats = self.tokenizer.nll(x, codes, given)
            assert nats is not None, "a tokenizer without a likelihood of its own needs scales"
        else:
            nats = image_nll(images, outputs, self.scales)
        self.nats += float(nats.double().sum())
        self.count += len(images)

    @property
    def bits_per_image(self) -> float:
        """The mean bits per image."""
        return self.nats / math.log(2) / self.count
