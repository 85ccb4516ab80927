"""Layers of the gated PixelCNN, built from convolutions that see only earlier sites.

No kernel is masked: each has only the part that it uses.

Shapes: b batch, c channels, h w code grid, s channels of the map of coarser grids.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Conditioning(NamedTuple):
    """Everything besides codes that the gates depend on."""

    rows: torch.Tensor | None = None  # (b,) of the tables of labels
    site_map: torch.Tensor | None = None  # (b, s, h, w) from the coarser grids


class CausalConv2d(nn.Conv2d):
    """A convolution after asymmetric padding (left, right, top, bottom); −1 drops the last row or column.

    `padding` is that of `nn.Conv2d`, for axes padded equally on both sides: it costs no copy.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        margins: tuple[int, int, int, int],
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=padding)
        self.margins = margins

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (b, in, h, w) to (b, out, h, w)."""
        return super().forward(F.pad(x, self.margins))


def vertical_conv(in_channels: int, out_channels: int, kernel: int, first: bool) -> CausalConv2d:
    """Return the vertical stack's convolution, over the rows strictly above (first layer, type A), or the own row too.

    The own row may be seen from the second layer on, because a vertical feature depends only on rows above its own.
    """
    reach = kernel // 2
    if first:
        return CausalConv2d(in_channels, out_channels, (reach, kernel), (0, 0, reach, -1), (0, reach))
    return CausalConv2d(in_channels, out_channels, (reach + 1, kernel), (0, 0, reach, 0), (0, reach))


def horizontal_conv(in_channels: int, out_channels: int, kernel: int, first: bool) -> CausalConv2d:
    """Return the horizontal stack's convolution, over the sites strictly left (type A), or the own site too."""
    reach = kernel // 2
    if first:
        return CausalConv2d(in_channels, out_channels, (1, reach), (reach, -1, 0, 0))
    return CausalConv2d(in_channels, out_channels, (1, reach + 1), (reach, 0, 0, 0))


def gated(x: torch.Tensor) -> torch.Tensor:
    """Return tanh(first half of the channels) ⊙ σ(second half): (b, 2c, ...) → (b, c, ...)."""
    values, gate = x.chunk(2, dim=1)
    return torch.tanh(values) * torch.sigmoid(gate)


class GatedLayer(nn.Module):
    """One layer of both stacks. The first has no residual connection: it would let a site see itself."""

    def __init__(self, channels: int, kernel: int, first: bool, num_conditions: int, map_channels: int = 0) -> None:
        super().__init__()
        self.first = first
        self.vertical = vertical_conv(channels, 2 * channels, kernel, first)
        self.horizontal = horizontal_conv(channels, 2 * channels, kernel, first)
        self.vertical_to_horizontal = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.horizontal_out = nn.Conv2d(channels, channels, 1)
        # V_f h and V_g h of Eq. 4, for the vertical and for the horizontal gate
        self.condition = nn.Embedding(num_conditions, 4 * channels) if num_conditions else None
        # V_f ∗ s and V_g ∗ s, where the condition is a map
        self.of_map = nn.Conv2d(map_channels, 4 * channels, 1, bias=False) if map_channels else None

    def forward(
        self, vertical: torch.Tensor, horizontal: torch.Tensor, given: Conditioning
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn features (b, c, h, w) of both stacks, and conditions, into the next layer's features."""
        above = self.vertical(vertical)
        left = self.horizontal(horizontal)
        left += self.vertical_to_horizontal(above)
        added = self._added(given)
        if added is not None:
            # in the features' own type: a float32 condition would turn everything after it into float32
            for_vertical, for_horizontal = added.to(above.dtype).chunk(2, dim=1)
            above = above + for_vertical  # not in place: the convolution of `above` needs it as it was
            left += for_horizontal
        update = self.horizontal_out(gated(left))
        return gated(above), update if self.first else horizontal + update

    def _added(self, given: Conditioning) -> torch.Tensor | None:
        """Return what conditions add to both gates, (b, 4c, 1, 1) or (b, 4c, h, w)."""
        of_label = None if self.condition is None else self.condition(given.rows)[:, :, None, None]
        if self.of_map is None:
            return of_label
        of_map: torch.Tensor = self.of_map(given.site_map)
        return of_map if of_label is None else of_map + of_label
