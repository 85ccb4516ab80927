"""Perceptual distances: how far two images are apart in the features of a network.

By the error of pixels, the best guess is the mean of all images that could be meant, which is blurred. Features tell
blur from detail.

Shapes: b batch, c channels, H W image.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from codegrid.errors import InputError, import_extra
from codegrid.protocols import Tokenizer

from .classifier import digest_of_weights
from .features import find_function
from .lite0 import PACKAGE, Lite0, load_lite0

PERCEPTUAL = "perceptual"  # in the provenance of a tokenizer, and the record of images that it decoded: that network
EPSILON = 1e-6  # in the root: without it, features that are all zero would have no gradient that is a number
CHOICES = "lite0, or module:function, a function that Python can import and that returns the network"


class Perceptual(NamedTuple):
    """A network that measures how far images are apart, and its description, as of a feature extractor."""

    network: nn.Module
    description: dict[str, Any]  # JSON

    def __call__(self, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        """Return the distances (b,) of images from others, both (b, c, H, W) in [-1, 1]; grey ones are repeated.

        Raises `InputError` if the network does not return one number for each pair, or one for all of them.
        """
        ours, theirs = (each.float().expand(-1, 3, -1, -1) for each in (ours, theirs))
        found = self.network(ours, theirs)
        if not isinstance(found, torch.Tensor) or (found.ndim and found.shape != (len(ours), *[1] * (found.ndim - 1))):
            what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise InputError(
                f"`perceptual` {self.description['name']}: it returned {what} for {len(ours)} pairs of images: return "
                "a tensor with one distance for each pair"
            )
        return found.float().flatten().expand(len(ours))


class FeatureDistance(nn.Module):
    """The mean squared distance of features of unit length, over the sites of each of several layers.

    Pixels are not enlarged first, so small images are seen as small. There are no weights of channels that people's
    judgements were fitted to, as LPIPS has them.
    """

    def __init__(self, network: Lite0) -> None:
        super().__init__()
        self.network = network

    def forward(self, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        """Return distances (b,) from 0 to 4 of images (b, 3, H, W) in [-1, 1]."""
        pairs = zip(self._features(ours), self._features(theirs), strict=True)
        return torch.stack([(one - other).square().sum(1).mean((1, 2)) for one, other in pairs]).mean(0)

    def _features(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        return [unit_length(of_layer.float()) for of_layer in self.network.layers((images + 1) * 127.5)]


def check_perceptual(name: str) -> None:
    """Raise `InputError` if a perceptual distance of this name cannot be had."""
    if name == "lite0":
        import_extra(PACKAGE, "`perceptual` lite0", "lite0")
    else:
        find_function("perceptual", name, CHOICES)


def load_perceptual(name: str, device: torch.device) -> Perceptual:
    """Return the network that a name stands for, in eval mode, without gradients of its own.

    Args:
        name: `lite0`, or `module:function` that returns a network, called with two batches of images (b, 3, H, W) in
            [-1, 1], as those of the package lpips are.
        device: where the network goes.

    Raises `InputError` if there is none, or its weights are not the known ones.
    """
    check_perceptual(name)
    network: nn.Module = (
        load_lite0("`perceptual` lite0") if name == "lite0" else find_function("perceptual", name, CHOICES)()
    )
    if not isinstance(network, nn.Module):
        raise InputError(f"`perceptual` {name}: it returned a {type(network).__name__}, not a torch.nn.Module")
    described = {"name": name, "weights": digest_of_weights(network)}
    if isinstance(network, Lite0):
        network = FeatureDistance(network)
    return Perceptual(network.to(device).eval().requires_grad_(False), described)


def networks_of(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return the descriptions of the networks that a tokenizer, and those below it, were trained with."""
    told = (getattr(each, "provenance", {}).get(PERCEPTUAL) for each in tokenizer.stack)
    return [each for each in told if isinstance(each, dict)]


def unit_length(features: torch.Tensor) -> torch.Tensor:
    """Return features (b, d, h, w) whose vector at each site has length 1, or nearly 0 if it was."""
    return features / (features.square().sum(1, keepdim=True) + EPSILON).sqrt()
