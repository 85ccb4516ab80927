"""Encoder and decoder of VQ-GAN and latent diffusion (Esser et al. 2021, Rombach et al. 2022): residual networks.

The modules have the names that diffusers gives those of its autoencoders, and compute the same, so that the weights of
an encoder or decoder fit one of diffusers.

Shapes: b batch, c channels, h w sites, H W the sites of a whole image.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from codegrid.limits import make_options

from .network_options import ResNetOptions

MAX_GROUPS = 32  # of a normalization
LEAST = 4  # channels of a group: one that is normalized alone would not keep how bright it is
EPSILON = 1e-6


class Sizes(NamedTuple):
    """Plan of an encoder or decoder, at each size from the image to the code grid."""

    widths: list[int]  # channels
    blocks: int  # residual blocks of the encoder; the decoder has one more
    groups: int  # of channels in all normalizations
    attends: tuple[int, ...] = ()  # numbers of the sizes at which attention follows each block
    middle: bool = True  # whether there is attention between the two middle blocks


class ResNet:
    """Residual networks with attention, in which images become narrower and wider by halves.

    Both networks have `hidden_channels` at the code grid, half as many at twice its sides, and a quarter at all larger
    sizes. There is no transposed convolution, whose pattern of squares would be seen in flat areas: the decoder repeats
    each pixel and convolves. Attention and normalization see a whole image, so that every code depends on every pixel.

    Args:
        hidden_channels: channels at the code grid.
        options: those of `ResNetOptions`.

    Raises `InputError` if an option is unknown or out of its range.
    """

    def __init__(self, hidden_channels: int = 128, **options: int) -> None:
        self.hidden_channels = hidden_channels
        settings: ResNetOptions = make_options(ResNetOptions, options, "the resnet network")
        self.blocks = settings.num_residual_blocks

    def encoder(self, in_channels: int, out_channels: int | None, factor: int) -> nn.Module:
        """Return an encoder, as `codegrid.protocols.Network.encoder`."""
        outputs = self.hidden_channels if out_channels is None else out_channels
        return Encoder(in_channels, outputs, self._sizes(in_channels, factor))

    def decoder(self, in_channels: int, out_channels: int, factor: int) -> nn.Module:
        """Return a decoder, as `codegrid.protocols.Network.decoder`."""
        return Decoder(in_channels, out_channels, self._sizes(out_channels, factor))

    def enlarger(self, channels: int, factor: int) -> nn.Module:
        """Return layers that only enlarge, as `codegrid.protocols.Network.enlarger`."""
        return nn.Sequential(*(Enlarge(channels) for _ in range(factor.bit_length() - 1)))

    def values_per_pixel(self, factor: int) -> int:
        """Return the width of the decoder's largest layer, as `codegrid.protocols.Network.values_per_pixel`."""
        return self._widths(1, factor)[:2][-1]  # it narrows only after enlarging

    def _sizes(self, outside: int, factor: int) -> Sizes:
        widths = self._widths(outside, factor)
        return Sizes(widths, self.blocks, groups_of(widths))

    def _widths(self, outside: int, factor: int) -> list[int]:
        """Return the channels at each size, from the largest to the code grid, behind or before `outside` channels.

        Features of a hierarchy are as wide as the code grid: between them nothing is narrower.
        """
        hidden, halvings = self.hidden_channels, factor.bit_length() - 1
        if outside >= hidden:
            return [hidden] * (halvings + 1)
        return [max(1, hidden >> min(2, halvings - number)) for number in range(halvings + 1)]


class Encoder(nn.Module):
    """Encoder, (b, c, H, W) → (b, outputs, h, w): each size but the last one is followed by a halving."""

    def __init__(self, in_channels: int, outputs: int, sizes: Sizes) -> None:
        super().__init__()
        widths, blocks, groups, attends, middle = sizes
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            BlocksOfSize(widths[max(0, number - 1)], width, blocks, groups, number in attends, shrinks=number < last)
            for number, width in enumerate(widths)
        )
        self.mid_block = Middle(widths[-1], groups, middle)
        self.conv_norm_out = normalization(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode an image, or features."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Decoder, (b, c, h, w) → (b, outputs, H, W): each size but the first, from the last one on, is doubled."""

    def __init__(self, in_channels: int, outputs: int, sizes: Sizes) -> None:
        super().__init__()
        widths, blocks, groups, attends, middle = sizes
        rising, last = widths[::-1], len(widths) - 1
        self.conv_in = nn.Conv2d(in_channels, rising[0], 3, padding=1)
        self.mid_block = Middle(rising[0], groups, middle)
        self.up_blocks = nn.ModuleList(
            BlocksOfSize(
                rising[max(0, number - 1)], width, blocks + 1, groups, last - number in attends, grows=number < last
            )
            for number, width in enumerate(rising)
        )
        self.conv_norm_out = normalization(rising[-1], groups)
        self.conv_out = nn.Conv2d(rising[-1], outputs, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Decode the vectors of codes."""
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class BlocksOfSize(nn.Module):
    """Residual blocks of one size, (b, inputs, h, w) → (b, outputs, h, w); then perhaps a change of the size.

    If it `attends`, attention follows each block.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        blocks: int,
        groups: int,
        attends: bool = False,
        shrinks: bool = False,
        grows: bool = False,
    ) -> None:
        super().__init__()
        self.resnets = make_blocks(inputs, outputs, blocks, groups)
        self.attentions = nn.ModuleList(Attention(outputs, groups) for _ in range(blocks * attends))
        self.downsamplers = nn.ModuleList([Shrink(outputs)] if shrinks else [])
        self.upsamplers = nn.ModuleList([Enlarge(outputs)] if grows else [])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the blocks, then change the size."""
        for number, block in enumerate(self.resnets):
            x = block(x)
            if self.attentions:
                x = self.attentions[number](x)
        for layer in (*self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class Middle(nn.Module):
    """A residual block, perhaps attention, and a residual block, (b, channels, h, w) → the same shape."""

    def __init__(self, channels: int, groups: int, attends: bool = True) -> None:
        super().__init__()
        self.resnets = make_blocks(channels, channels, 2, groups)
        self.attentions = nn.ModuleList(Attention(channels, groups) for _ in range(attends))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block, the attention, and the other block."""
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class ResidualBlock(nn.Module):
    """x + (norm, SiLU, 3×3, norm, SiLU, 3×3)(x), (b, inputs, h, w) → (b, outputs, h, w); x by a 1×1 if these differ."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = normalization(inputs, groups), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = normalization(outputs, groups), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return self.conv_shortcut(x) + y


class Attention(nn.Module):
    """x + attention of each site to all sites, in one head, (b, channels, h, w) → the same shape."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = normalization(channels, groups)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend; memory grows with the number of sites, not with its square."""
        rows = self.group_norm(x).flatten(2).transpose(1, 2)[:, None]  # (b, 1, n, c)
        found = F.scaled_dot_product_attention(self.to_q(rows), self.to_k(rows), self.to_v(rows))
        return x + self.to_out[0](found)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])


class Shrink(nn.Module):
    """Halving of the sides by a 3×3 convolution of stride 2, (b, channels, h, w) → (b, channels, h / 2, w / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pad below and on the right, and convolve."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Enlarge(nn.Module):
    """Doubling of the sides, (b, channels, h, w) → (b, channels, 2 h, 2 w): each pixel four times, then a 3×3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Repeat the pixels and convolve."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def make_blocks(inputs: int, outputs: int, count: int, groups: int) -> nn.ModuleList:
    """Return residual blocks in a row, of which the first one changes the number of channels."""
    return nn.ModuleList(ResidualBlock(outputs if number else inputs, outputs, groups) for number in range(count))


def normalization(channels: int, groups: int) -> nn.GroupNorm:
    """Return a normalization of each image by itself, over groups of channels and all sites."""
    return nn.GroupNorm(groups, channels, eps=EPSILON)


def groups_of(widths: list[int]) -> int:
    """Return the number of groups of channels in all layers: 32, or fewer if there are few channels.

    >>> groups_of([128, 256, 512]), groups_of([32, 64, 128])
    (32, 8)
    """
    return math.gcd(MAX_GROUPS, max(1, min(widths) // LEAST), *widths)
