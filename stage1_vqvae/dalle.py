"""Encoder and decoder of DALL·E's discrete VAE (Ramesh et al. 2021, arXiv 2102.12092, appendix A.2).

Shapes: b batch, c channels, h w code grid, H W an image.
"""

from typing import Any

import torch
from torch import nn

from codegrid.limits import make_options

from .network_options import DallEOptions

SCALE, SHIFT = 0.4, 0.5  # images in [-1, 1] become 0.1 ... 0.9


class ToMargin(nn.Module):
    """Images in [-1, 1] as numbers from 0.1 to 0.9."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale and shift."""
        return SCALE * x + SHIFT


class Bottleneck(nn.Module):
    """x + gain · (four convolutions, each behind a ReLU)(x), a quarter as wide inside; x by a 1×1 if widths differ.

    Args:
        inputs, outputs: channels.
        kernels: of the four convolutions.
        gain: of what is added.
    """

    def __init__(self, inputs: int, outputs: int, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        inside = max(1, outputs // 4)
        widths = [inputs, inside, inside, inside, outputs]
        layers: list[nn.Module] = []
        for number, kernel in enumerate(kernels):
            layers += [nn.ReLU(), nn.Conv2d(widths[number], widths[number + 1], kernel, padding=kernel // 2)]
        self.layers, self.gain = nn.Sequential(*layers), gain
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block, (b, inputs, h, w) → (b, outputs, h, w)."""
        return self.shortcut(x) + self.gain * self.layers(x)


class DallENetwork:
    """Groups of residual blocks, with a maximum over 2×2 pixels between them, and back a repetition of pixels.

    There are `hidden_channels` at the size of the image, and twice as many at each smaller one.

    Args:
        hidden_channels: channels at the size of the image.
        options: those of `DallEOptions`.

    Raises `InputError` if an option is unknown or out of its range.
    """

    def __init__(self, hidden_channels: int = 128, **options: Any) -> None:
        self.hidden_channels = hidden_channels
        self.settings: DallEOptions = make_options(DallEOptions, options, "the dalle network")

    def encoder(self, in_channels: int, out_channels: int | None, factor: int) -> nn.Sequential:
        """Return an encoder, as `codegrid.protocols.Network.encoder`."""
        widths = self._widths(factor)
        layers: list[nn.Module] = [ToMargin(), nn.Conv2d(in_channels, widths[0], 7, padding=3)]
        before = widths[0]
        for number, width in enumerate(widths):
            layers += [nn.MaxPool2d(2)] * (number > 0)
            layers += self._group(before, width, (3, 3, 3, 1), len(widths))
            before = width
        return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(before, out_channels or self.hidden_channels, 1))

    def decoder(self, in_channels: int, out_channels: int, factor: int) -> nn.Sequential:
        """Return a decoder, as `codegrid.protocols.Network.decoder`."""
        widths, before = self._widths(factor)[::-1], self.settings.start_channels
        layers: list[nn.Module] = [nn.Conv2d(in_channels, before, 1)]
        for number, width in enumerate(widths):
            layers += [nn.Upsample(scale_factor=2.0)] * (number > 0)
            layers += self._group(before, width, (1, 3, 3, 3), len(widths))
            before = width
        return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(before, out_channels, 1))

    def enlarger(self, channels: int, factor: int) -> nn.Sequential:
        """Return layers that only enlarge, as `codegrid.protocols.Network.enlarger`."""
        return nn.Sequential(*(layer for _ in range(factor.bit_length() - 1) for layer in self._doubling(channels)))

    def values_per_pixel(self, factor: int) -> int:
        """Return the width of the decoder's largest layer, as `codegrid.protocols.Network.values_per_pixel`."""
        # it narrows only after enlarging
        return max(self._widths(factor)[:2][-1], -(-self.settings.start_channels // factor**2))

    def _widths(self, factor: int) -> list[int]:
        """Return the channels at each size, from the image to the code grid."""
        return [self.hidden_channels << number for number in range(factor.bit_length())]

    def _group(self, inputs: int, outputs: int, kernels: tuple[int, ...], groups: int) -> list[nn.Module]:
        blocks = self.settings.num_residual_blocks
        gain = 1 / (groups * blocks) ** 2
        return [Bottleneck(outputs if number else inputs, outputs, kernels, gain) for number in range(blocks)]

    @staticmethod
    def _doubling(channels: int) -> list[nn.Module]:
        return [nn.Upsample(scale_factor=2.0), nn.Conv2d(channels, channels, 3, padding=1)]
