"""Convolutions that see only what comes before, at their real kernel size: nothing is masked, the rest does not exist.

Shapes: b batch, c channels, h w code grid.
"""

import torch
import torch.nn.functional as F
from torch import nn


class CausalConv2d(nn.Conv2d):
    """A convolution behind a lopsided padding (left, right, top, bottom); −1 drops the last row or column.

    `padding` is that of `nn.Conv2d`, for the axes that are padded alike on both sides: it costs no copy.
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
        """(b, in, h, w) → (b, out, h, w)."""
        return super().forward(F.pad(x, self.margins))


def vertical_conv(in_channels: int, out_channels: int, kernel: int, first: bool) -> CausalConv2d:
    """The vertical stack's convolution: the rows strictly above (first layer, type A), or these and the own row.

    The own row may be seen from the second layer on, because a vertical feature knows only rows above its own.
    """
    reach = kernel // 2
    if first:
        return CausalConv2d(in_channels, out_channels, (reach, kernel), (0, 0, reach, -1), (0, reach))
    return CausalConv2d(in_channels, out_channels, (reach + 1, kernel), (0, 0, reach, 0), (0, reach))


def horizontal_conv(in_channels: int, out_channels: int, kernel: int, first: bool) -> CausalConv2d:
    """The horizontal stack's convolution: the sites strictly left (first layer, type A), or these and the own site."""
    reach = kernel // 2
    if first:
        return CausalConv2d(in_channels, out_channels, (1, reach), (reach, -1, 0, 0))
    return CausalConv2d(in_channels, out_channels, (1, reach + 1), (reach, 0, 0, 0))
