"""Convolutions that see only earlier sites, in raster order.

No kernel is masked: each has only the part that it uses.

Shapes: b batch, h w code grid.
"""

import torch
import torch.nn.functional as F
from torch import nn


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
