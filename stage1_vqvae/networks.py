"""Encoder and decoder of the VQ-VAE (van den Oord et al. 2017, section 4.1), and what hierarchies make of their layers.

Shapes: b batch, c image channels, H W image, D embedding_dim, h w code grid with h = H / downsampling.
"""

from itertools import pairwise

import torch
from torch import nn

from .options import NetworkOptions, VQVAEOptions


class ResidualBlock(nn.Module):
    """A residual block: x + (ReLU, 3×3, ReLU, 1×1)(x)."""

    def __init__(self, channels: int, residual_channels: int) -> None:
        super().__init__()
        # no in-place ReLU: it would change the x that the skip connection adds
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, residual_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(residual_channels, channels, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block, (b, channels, h, w) → (b, channels, h, w)."""
        return x + self.layers(x)


class Encoder(nn.Sequential):
    """Encoder, (b, c, H, W) → (b, D, h, w): 4×4 convolutions of stride 2, then the residual blocks."""

    def __init__(self, in_channels: int, embedding_dim: int, options: VQVAEOptions) -> None:
        layers = shrink_layers(in_channels, options, options.downsampling)
        super().__init__(*layers, nn.Conv2d(options.hidden_channels, embedding_dim, 1))


class Decoder(nn.Sequential):
    """Decoder, (b, D, h, w) → (b, c, H, W): the encoder's mirror, with transposed convolutions."""

    def __init__(self, out_channels: int, embedding_dim: int, options: VQVAEOptions) -> None:
        super().__init__(*grow_layers(embedding_dim, out_channels, options, options.downsampling))


def shrink_layers(in_channels: int, options: NetworkOptions, factor: int) -> list[nn.Module]:
    """Return an encoder's layers, (b, c, H, W) → (b, hidden_channels, H / factor, W / factor), for a power of two."""
    hidden, halvings = options.hidden_channels, factor.bit_length() - 1
    widths = [in_channels, hidden // 2, *[hidden] * (halvings - 1)][: halvings + 1]
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(widths):
        layers += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(widths[-1], hidden, 3, padding=1)]
    layers += [ResidualBlock(hidden, options.residual_channels) for _ in range(options.num_residual_blocks)]
    return [*layers, nn.ReLU()]


def grow_layers(in_channels: int, out_channels: int, options: NetworkOptions, factor: int) -> list[nn.Module]:
    """Return a decoder's layers, (b, in_channels, h, w) → (b, out_channels, factor · h, factor · w)."""
    hidden, halvings = options.hidden_channels, factor.bit_length() - 1
    widths = [*[hidden] * max(1, halvings - 1), hidden // 2][:halvings]
    layers: list[nn.Module] = [nn.Conv2d(in_channels, hidden, 3, padding=1)]
    layers += [ResidualBlock(hidden, options.residual_channels) for _ in range(options.num_residual_blocks)]
    layers += [nn.ReLU()]
    if not halvings:
        return [*layers, nn.Conv2d(hidden, out_channels, 3, padding=1)]
    return [*layers, *_doublings([*widths, out_channels])]


def enlarge_layers(channels: int, factor: int) -> list[nn.Module]:
    """Return layers that only enlarge, (b, channels, h, w) → (b, channels, factor · h, factor · w)."""
    return _doublings([channels] * factor.bit_length())


def _doublings(widths: list[int]) -> list[nn.Module]:
    """Return transposed convolutions of stride 2 from width to width, with ReLUs between them."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1), nn.ReLU()]
    return layers[:-1]
