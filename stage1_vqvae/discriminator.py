"""The discriminator of patches (Isola et al. 2017), and its losses: the second player of a VQ-GAN (Esser et al. 2021).

Shapes: b batch, c image channels, H W image, h w its map of logits.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from codegrid.codes import Sides
from codegrid.errors import InputError

LEAST_SIDE = 4  # of the map: with fewer patches, it judges whole images, and soon knows them by heart
MOST_LAYERS = 3  # by default: patches of 70 pixels
MOST_TIMES = 8  # channels of the deepest layers over those of the first
GROUPS = 8  # of channels that are normalized together
SLOPE = 0.2  # of the leaky ReLUs


class PatchDiscriminator(nn.Sequential):
    """A network that tells real images from reconstructed ones, patch by patch: (b, c, H, W) → logits (b, 1, h, w).

    High logits stand for real patches. They overlap: a patch has 16, 34 or 70 pixels with 1, 2 or 3 layers. Each
    image is normalized by itself, so that its logits do not depend on what else is in the batch.

    Args:
        in_channels: c.
        size: (H, W) of the images.
        channels: of the first layer; each following one has twice as many, up to eight times.
        num_layers: halvings of the sides. None: as many as leave a map of 4×4 or more, up to 3.

    Raises `InputError` if the map would be smaller than that.
    """

    def __init__(self, in_channels: int, size: Sides, channels: int, num_layers: int | None = None) -> None:
        self.num_layers = num_layers or most_layers(size)
        _check_map(size, self.num_layers)
        widths = [channels * min(2**number, MOST_TIMES) for number in range(self.num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        for number, (narrow, wide) in enumerate(pairwise(widths), 1):
            stride = 2 if number < self.num_layers else 1
            layers += [nn.Conv2d(narrow, wide, 4, stride, 1, bias=False)]
            layers += [nn.GroupNorm(math.gcd(GROUPS, wide), wide), nn.LeakyReLU(SLOPE)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))


def map_size(size: Sides, num_layers: int) -> Sides:
    """Return (h, w) of the logits of images (H, W): 0 or less if there are none."""
    return tuple((side >> num_layers) - 2 for side in size)


def most_layers(size: Sides) -> int:
    """Return the largest number of layers, from 1 to 3, whose map is large enough; 1 if none is."""
    return max((n for n in range(1, MOST_LAYERS + 1) if min(map_size(size, n)) >= LEAST_SIDE), default=1)


def _check_map(size: Sides, num_layers: int) -> None:
    """Raise `InputError` if the map of logits would be too small."""
    found = map_size(size, num_layers)
    if min(found) >= LEAST_SIDE:
        return
    images, least = "×".join(map(str, size)), f"{LEAST_SIDE}×{LEAST_SIDE}"
    if min(map_size(size, 1)) < LEAST_SIDE:
        raise InputError(
            f"`adversarial_weight`: images of {images} are too small for a discriminator of {least} patches "
            "or more: leave it out, or give a larger `image_size`"
        )
    left = "×".join(str(max(0, side)) for side in found)
    raise InputError(
        f"`discriminator_layers` {num_layers}: with images of {images} they leave {left} patches: at least {least} are "
        f"needed: give at most {most_layers(size)}"
    )


class AdversarialLoss(NamedTuple):
    """Losses () of both players, for logits of any shape in float32."""

    of_discriminator: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # real, reconstructed
    of_tokenizer: Callable[[torch.Tensor], torch.Tensor]  # reconstructed


ADVERSARIAL_LOSSES = {
    # no gradient from logits beyond ±1 that are right; the tokenizer raises the logits, however high they are
    "hinge": AdversarialLoss(
        lambda real, fake: (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2, lambda fake: -fake.mean()
    ),
    # −log D(x) − log(1 − D(x̂)), and −log D(x̂), with D = σ(logit)
    "non-saturating": AdversarialLoss(
        lambda real, fake: (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2,
        lambda fake: F.softplus(-fake).mean(),
    ),
}


def lecam_loss(
    real: torch.Tensor, fake: torch.Tensor, mean_real: torch.Tensor, mean_fake: torch.Tensor
) -> torch.Tensor:
    """Return the LeCAM penalty () (Tseng et al. 2021), which keeps a discriminator of few images from being too sure.

        E relu(D(x) − α_fake)² + E relu(α_real − D(x̂))²

    Args:
        real, fake: logits of any shape.
        mean_real, mean_fake: α, moving averages () of their means.
    """
    return F.relu(real - mean_fake).square().mean() + F.relu(mean_real - fake).square().mean()
