"""Cached convolutions of PixelSNAIL's residual layers: what a site sees of finished rows, and of those on its left.

Shapes: b batch, c channels, w width of the grid, k kernel, l layers, s channels of the coarser grids' map.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .weights import bias_of, transposed, weight_of

if TYPE_CHECKING:
    from codegrid.stage2_prior.coarser import Conditioning

    from .network import PixelSNAILNetwork


class Convolutions:
    """One convolution of each layer, at the sites of a row, column after column, and in it sample after sample."""

    def __init__(self, layers: list[nn.Conv2d], batch_size: int, width: int) -> None:
        weights = torch.stack([layer.weight.detach() for layer in layers])
        count, out_channels, channels, kernel, _ = weights.shape
        self.reach = kernel - 1
        # for each row from the own one up, and for each column from the own one to the left: (l, in, out)
        self.taps = weights.flip(3, 4).permute(3, 4, 0, 2, 1).contiguous()
        self.constants = torch.stack([bias_of(layer) for layer in layers])[:, None]  # (l, 1, out), or (l, b, out)
        # inputs of the rows that a kernel sees, each row in the place of the one that is seen no longer
        self.seen = weights.new_empty(self.reach, count, width, batch_size, channels)
        self.from_above = weights.new_empty(count, width, batch_size, out_channels)
        self.out = weights.new_empty(width, count, batch_size, out_channels)  # with this, a site is one block of memory
        self.out_at, self.left = self.out.unbind(0), self.taps[0].unbind(0)
        self.seen_at = [row.unbind(1) for row in self.seen.unbind(0)]

    def start_row(self, row: int) -> None:
        """Compute what the sites of a row see of the rows above."""
        if row == 0:
            self.out.copy_(self.constants)
            return
        rows, width = self.from_above, len(self.out)
        for up, left in product(range(1, min(row, self.reach) + 1), range(min(self.reach + 1, width))):
            seen = self.seen[(row - up) % self.reach, :, : width - left].flatten(1, 2)
            seeing = rows[:, left:].flatten(1, 2)
            if up == 1 and left == 0:
                torch.bmm(seen, self.taps[1, 0], out=seeing)
            else:
                seeing.baddbmm_(seen, self.taps[up, left])
        torch.add(rows.transpose(0, 1), self.constants, out=self.out)

    def look_left(self, row: int, column: int) -> None:
        """Add what a site sees of those on its left."""
        for left in range(1, min(self.reach, column) + 1):
            self.out_at[column].baddbmm_(self.seen_at[row % self.reach][column - left], self.left[left])


class ConvolutionCache:
    """The two convolutions of all residual layers."""

    def __init__(self, network: PixelSNAILNetwork, batch_size: int, width: int, given: Conditioning) -> None:
        layers = network.residual_layers()
        self.inner = Convolutions([layer.inner for layer in layers], batch_size, width)
        self.gates = Convolutions([layer.gates for layer in layers], batch_size, width)
        if given.rows is not None:
            tables = [weight_of(layer.condition) for layer in layers if layer.condition is not None]
            added = torch.stack([F.embedding(given.rows, table) for table in tables])
            self.gates.constants = self.gates.constants + added
        self.rows_of_map: tuple[Tensor, ...] = ()  # (w·b, s) each
        if given.site_map is not None:
            self.rows_of_map = given.site_map.permute(2, 3, 0, 1).flatten(1, 2).unbind(0)
            self.of_map = torch.cat([transposed(layer.of_map)[0] for layer in layers if layer.of_map is not None], 1)
        self.views = [[self._views(slot, column) for column in range(width)] for slot in range(self.inner.reach)]

    def _views(self, slot: int, column: int) -> list[tuple[Tensor, ...]]:
        """Return, for each layer at a site, input, kernel and output of both convolutions, and the output's halves."""
        parts: list[Tensor] = []
        for each in (self.inner, self.gates):
            parts += each.seen_at[slot][column], each.left[0], each.out_at[column]
        return list(zip(*parts, *parts[-1].chunk(2, dim=2), strict=True))

    def start_row(self, row: int) -> None:
        """Compute what the sites of a row see of the rows above."""
        self.inner.start_row(row)
        self.gates.start_row(row)
        if self.rows_of_map:
            width, count, batch_size, _ = self.gates.out.shape
            added = torch.mm(self.rows_of_map[row], self.of_map).view(width, batch_size, count, -1)
            self.gates.out += added.transpose(1, 2)

    def layers_at(self, row: int, column: int) -> list[tuple[Tensor, ...]]:
        """Return the tensors of each layer at a site, which has seen those above and on its left."""
        self.inner.look_left(row, column)
        self.gates.look_left(row, column)
        return self.views[row % len(self.views)][column]
