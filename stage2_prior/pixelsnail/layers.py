"""Layers of PixelSNAIL: gated residual convolutions, and attention over all earlier sites.

Shapes: b batch, c channels, h w code grid, n = h·w sites, a num_heads · head_channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.stage2_prior.causal import CausalConv2d, horizontal_conv, vertical_conv

WAVES = 8  # cosines that describe a position along each axis


def axis_positions(size: int, like: Tensor) -> Tensor:
    """Return cos(πf(i + ½)/size) for f = 1 ... WAVES, (WAVES, size): positions relative to the grid, of any size."""
    sites = torch.arange(size, dtype=torch.float64, device=like.device) + 0.5
    waves = torch.arange(1, WAVES + 1, dtype=torch.float64, device=like.device)
    return torch.cos(math.pi * waves[:, None] * sites / size).to(like.dtype)


def positions(embedded: Tensor) -> Tensor:
    """Return the position of each site of embedded codes (b, c, h, w), (1, 2·WAVES, h, w)."""
    height, width = embedded.shape[2:]
    rows = axis_positions(height, embedded)[:, :, None].expand(-1, -1, width)
    columns = axis_positions(width, embedded)[:, None].expand(-1, height, -1)
    return torch.cat([rows, columns])[None]


class InputLayer(nn.Module):
    """The first layer: the only one in which a site does not see itself."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        around = 2 * kernel - 1
        self.above = vertical_conv(channels, channels, around, first=True)
        self.left = horizontal_conv(channels, channels, around, first=True)
        self.position = nn.Conv2d(2 * WAVES, channels, 1, bias=False)

    def forward(self, embedded: Tensor, position: Tensor) -> Tensor:
        """Turn embedded codes (b, c, h, w) and positions (1, 2·WAVES, h, w) into features (b, c, h, w)."""
        return self.above(embedded) + self.left(embedded) + self.position(position)


def down_right_conv(in_channels: int, out_channels: int, kernel: int) -> CausalConv2d:
    """Return a convolution over a square of kernel × kernel sites, of which the own one is the last."""
    return CausalConv2d(in_channels, out_channels, (kernel, kernel), (kernel - 1, 0, kernel - 1, 0))


class ResidualLayer(nn.Module):
    """Two convolutions with a gate: x + a ⊙ σ(b), where (a, b) = V elu(W elu(x)) + condition."""

    def __init__(self, channels: int, kernel: int, num_conditions: int) -> None:
        super().__init__()
        self.inner = down_right_conv(channels, channels, kernel)
        self.gates = down_right_conv(channels, 2 * channels, kernel)
        self.condition = nn.Embedding(num_conditions, 2 * channels) if num_conditions else None

    def forward(self, x: Tensor, conditions: Tensor | None, dropout: float) -> Tensor:
        """Turn features (b, c, h, w) and condition rows (b,) into the next layer's features."""
        inner = F.elu(self.inner(F.elu(x)))
        gates = self.gates(F.dropout(inner, dropout, training=dropout > 0))
        if self.condition is not None:
            # in the features' own type: a float32 condition would turn everything after it into float32
            gates = gates + self.condition(conditions).to(gates.dtype)[:, :, None, None]
        return x + F.glu(gates, dim=1)


class AttentionLayer(nn.Module):
    """Attention over all earlier sites: x + a ⊙ σ(b), where (a, b) = W elu(x) + V attended.

    Keys and values are made from a site's own code, its features and its position, queries from the features and the
    position. Keys and values are moved on by one site, behind a learnt start, so that the usual causal mask, which
    includes the own place, shows the strict past, and the first site has something to look at.
    """

    def __init__(self, channels: int, num_heads: int, head_channels: int) -> None:
        super().__init__()
        self.num_heads, self.wide = num_heads, num_heads * head_channels
        self.from_features = nn.Conv2d(channels, 3 * self.wide + 2 * channels, 1)  # query, key, value, gates
        self.from_codes = nn.Conv2d(channels, 2 * self.wide, 1, bias=False)  # key, value
        self.from_position = nn.Conv2d(2 * WAVES, 3 * self.wide, 1, bias=False)  # query, key, value
        self.from_attended = nn.Conv2d(self.wide, 2 * channels, 1, bias=False)  # gates
        self.start = nn.Parameter(torch.zeros(2 * self.wide))  # key and value before the first site's

    def forward(self, x: Tensor, embedded: Tensor, position: Tensor) -> Tensor:
        """Turn features and embedded codes (b, c, h, w), and positions (1, 2·WAVES, h, w), into the next features."""
        attending, gates = self.from_features(F.elu(x)).split((3 * self.wide, x.shape[1] * 2), dim=1)
        attending = attending + self.from_position(position)
        query, known = attending.flatten(2).split((self.wide, 2 * self.wide), dim=1)
        known = known + self.from_codes(embedded).flatten(2)
        start = self.start.to(known.dtype)[:, None].expand(len(x), -1, -1)
        known = torch.cat([start, known[:, :, :-1]], dim=2)
        query, key, value = (self._by_head(part) for part in (query, *known.chunk(2, dim=1)))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # (b, heads, n, head_channels)
        gates = gates + self.from_attended(attended.mT.reshape(len(x), self.wide, *x.shape[2:]))
        return x + F.glu(gates, dim=1)

    def _by_head(self, x: Tensor) -> Tensor:
        """Rearrange (b, a, n) to (b, heads, n, head_channels)."""
        return x.unflatten(1, (self.num_heads, -1)).mT
