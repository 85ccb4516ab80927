"""Encoder and decoder of the VQ-VAE (van den Oord et al. 2017, section 4.1), and what hierarchies make of their layers.

Shapes: b batch, c image channels, H W image, D embedding_dim, h w code grid with h = H / downsampling.
"""

from itertools import pairwise

import torch
from torch import nn

from codegrid.limits import make_options

from .network_options import PaperOptions


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


class PaperNetwork:
    """The paper's networks: 4×4 convolutions of stride 2, then residual blocks; the decoder is the encoder's mirror.

    Args:
        hidden_channels: channels at the code grid; half as many after the first convolution.
        options: those of `PaperOptions`.

    Raises `InputError` if an option is unknown or out of its range.
    """

    def __init__(self, hidden_channels: int = 128, **options: int) -> None:
        self.hidden_channels = hidden_channels
        self.settings: PaperOptions = make_options(PaperOptions, options, "the paper network")

    def encoder(self, in_channels: int, out_channels: int | None, factor: int) -> nn.Sequential:
        """Return an encoder, as `codegrid.protocols.Network.encoder`."""
        hidden, halvings = self.hidden_channels, factor.bit_length() - 1
        widths = [in_channels, hidden // 2, *[hidden] * (halvings - 1)][: halvings + 1]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(widths[-1], hidden, 3, padding=1), *self._blocks(), nn.ReLU()]
        return nn.Sequential(*layers, *([] if out_channels is None else [nn.Conv2d(hidden, out_channels, 1)]))

    def decoder(self, in_channels: int, out_channels: int, factor: int) -> nn.Sequential:
        """Return a decoder with transposed convolutions, as `codegrid.protocols.Network.decoder`."""
        hidden, halvings = self.hidden_channels, factor.bit_length() - 1
        widths = [*[hidden] * max(1, halvings - 1), hidden // 2][:halvings]
        layers = [nn.Conv2d(in_channels, hidden, 3, padding=1), *self._blocks(), nn.ReLU()]
        if not halvings:
            return nn.Sequential(*layers, nn.Conv2d(hidden, out_channels, 3, padding=1))
        return nn.Sequential(*layers, *_doublings([*widths, out_channels]))

    def enlarger(self, channels: int, factor: int) -> nn.Sequential:
        """Return layers that only enlarge, as `codegrid.protocols.Network.enlarger`."""
        return nn.Sequential(*_doublings([channels] * factor.bit_length()))

    def values_per_pixel(self, factor: int) -> int:
        """Return the width of the decoder's largest layer, as `codegrid.protocols.Network.values_per_pixel`."""
        # at half the sides; half as wide if these are halved once more
        return self.hidden_channels // {1: 1, 2: 4}.get(factor, 8)

    def _blocks(self) -> list[nn.Module]:
        settings = self.settings
        return [
            ResidualBlock(self.hidden_channels, settings.residual_channels) for _ in range(settings.num_residual_blocks)
        ]


def _doublings(widths: list[int]) -> list[nn.Module]:
    """Return transposed convolutions of stride 2 from width to width, with ReLUs between them."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1), nn.ReLU()]
    return layers[:-1]
