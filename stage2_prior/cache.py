"""What the cached sampler remembers, so that nothing of the forward pass is computed twice.

The vertical stack is computed a whole row at a time, the horizontal one a site at a time. Of each layer's input
only what a kernel still reaches is kept: memory grows with the width of the grid, not with its area.

Shapes: b batch, c channels, w width, K num_embeddings; `reach` is kernel // 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from .gating import gate

if TYPE_CHECKING:
    from .pixelcnn import GatedLayer, GatedPixelCNN


class PixelCNNCache:
    """One site's logits at a time: ask `next_logits()`, then `append` the codes that were drawn there."""

    def __init__(
        self, prior: GatedPixelCNN, batch_size: int, height: int, width: int, conditions: torch.Tensor | None
    ) -> None:
        self.prior = prior
        self.width = width
        self.column = 0
        weight = prior.embedding.weight
        self.layers = [LayerCache(layer, batch_size, width, conditions, weight) for layer in prior.layers]
        # the row that is being filled, and before it the one just finished, as the first layer's vertical input
        self.row = weight.new_zeros(batch_size, prior.channels, 1, width)
        self._start_row()

    def next_logits(self) -> torch.Tensor:
        """Logits (b, K) of the next site in raster order."""
        horizontal = self.left
        for layer in self.layers:
            horizontal = layer.step(horizontal, self.column)
        first, second = (self.prior.head[i] for i in (1, 3))
        hidden = F.linear(F.relu(horizontal), first.weight.flatten(1), first.bias)
        return F.linear(F.relu(hidden), second.weight.flatten(1), second.bias)

    def append(self, codes: torch.Tensor) -> None:
        """Take in the codes (b,) of the site whose logits were given last."""
        self.left = F.embedding(codes, self.prior.embedding.weight)
        self.row[:, :, 0, self.column] = self.left
        self.column += 1
        if self.column == self.width:
            self._start_row()

    def _start_row(self) -> None:
        vertical = self.row
        for layer in self.layers:
            vertical = layer.start_row(vertical)
        self.row = torch.zeros_like(self.row)
        self.left = self.row[:, :, 0, 0]  # nothing stands left of the first column
        self.column = 0


class LayerCache:
    """The inputs of one layer that its kernels still reach."""

    def __init__(
        self, layer: GatedLayer, batch_size: int, width: int, conditions: torch.Tensor | None, like: torch.Tensor
    ) -> None:
        self.layer = layer
        rows, kernel = layer.vertical.kernel_size
        channels = layer.vertical.in_channels
        self.padding = (0, kernel // 2)
        self.rows = like.new_zeros(batch_size, channels, rows, width)
        # type A sees the sites strictly left, type B the own site too: either way as many as the kernel is wide
        self.sites = like.new_zeros(batch_size, channels, layer.horizontal.kernel_size[1])
        self.condition = None if layer.condition is None else layer.condition(conditions).chunk(2, dim=1)
        self.kernel = layer.horizontal.weight.flatten(1)  # (2c, c·sites)
        self.out = layer.horizontal_out.weight.flatten(1)

    def start_row(self, vertical: torch.Tensor) -> torch.Tensor:
        """The vertical stack for a new row: the newest row of its input (b, c, 1, w) → its output (b, c, 1, w)."""
        self.rows = torch.cat([self.rows[:, :, 1:], vertical], dim=2)
        self.sites = torch.zeros_like(self.sites)
        above = F.conv2d(self.rows, self.layer.vertical.weight, self.layer.vertical.bias, padding=self.padding)
        from_above = self.layer.vertical_to_horizontal(above).squeeze(2)
        # one contiguous piece for each site
        self.from_above = (from_above + self.layer.horizontal.bias[:, None]).permute(2, 0, 1).contiguous()
        if self.condition is not None:
            above = above + self.condition[0][:, :, None, None]
            self.from_above += self.condition[1]
        return gate(above)

    def step(self, horizontal: torch.Tensor, column: int) -> torch.Tensor:
        """The horizontal stack for one site: the newest site of its input (b, c) → its output (b, c)."""
        self.sites = torch.cat([self.sites[:, :, 1:], horizontal[:, :, None]], dim=2)
        left = torch.addmm(self.from_above[column], self.sites.flatten(1), self.kernel.T)
        update = F.linear(gate(left), self.out, self.layer.horizontal_out.bias)
        return update if self.layer.first else horizontal + update
