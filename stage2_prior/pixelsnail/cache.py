"""Cached steps of PixelSNAIL, which compute nothing of the forward pass twice.

The part of a convolution's kernel that lies in finished rows is one matrix product for each of its sites, for all
columns of a new row and all layers at once. Per site, the part on its left is one for all layers, too. So a layer is
left with its own site, and with attention over the keys and values of earlier sites, which are kept.

A site is a chain of small operations, and takes as long as they are many: tensors are written in place, through views
that are made once, and products with the same input are one.

Shapes: b batch, c channels, h w code grid, n = h·w sites, k kernel, K num_embeddings of a grid.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from codegrid.codes import Layout
from codegrid.stage2_prior.sampling.sequential import site_by_site

from .cached_attention import AttentionCache, elu_into
from .cached_convolutions import ConvolutionCache
from .layers import positions
from .weights import bias_of, transposed, weight_of

if TYPE_CHECKING:
    from codegrid.stage2_prior.coarser import Conditioning

    from .layers import InputLayer
    from .network import PixelSNAILNetwork


class PixelSNAILSteps:
    """Steps of one code each: call `next_logits()`, then `append` the codes that were drawn."""

    @torch.no_grad()
    def __init__(self, network: PixelSNAILNetwork, layout: Layout, batch_size: int, given: Conditioning) -> None:
        self.order = site_by_site(layout)
        self.num_grids, (self.height, self.width) = len(layout), layout[0].shape
        self.embeddings = [weight_of(table) for table in network.embeddings]
        self.within_site = [weight_of(table) for table in network.within_site]
        self.heads = [[transposed(layer) for layer in (head[1], head[3])] for head in network.heads]  # type: ignore[index]
        # the position of each site of the grid, (n, 2·WAVES)
        place = positions(self.embeddings[0].new_empty(1, 1, self.height, self.width)).flatten(2)[0].T
        sizes = batch_size, self.height, self.width
        self.input = InputCache(network.input, place, sizes)
        self.convolutions = ConvolutionCache(network, batch_size, self.width, given)
        self.attention = AttentionCache(network, place, sizes)
        # of a site's embedded codes: what sites on its right see of them, and the keys and values of each block
        self.from_codes = torch.cat([self.input.for_right, self.attention.for_known], dim=1)
        self.features = self.input.row[0]
        self.taken = self.computed = 0  # codes that were appended; sites whose features are computed
        self.logits: Tensor | None = None

    def next_logits(self) -> Tensor:
        """Return the logits (b, 1, K) of the next code, in raster order, all codes of a site before the next site."""
        if self.logits is None:
            site, grid = divmod(self.taken, self.num_grids)
            self._compute(site)
            (hidden, hidden_bias), (weight, bias) = self.heads[grid]
            inner = torch.addmm(hidden_bias, self.features.relu(), hidden).relu_()
            self.logits = torch.addmm(bias, inner, weight).unsqueeze(1)
        return self.logits

    def append(self, codes: Tensor) -> None:
        """Append the codes (b, 1) whose logits were returned last, or known ones (b, m) of several steps."""
        for column in codes.unbind(1):
            site, grid = divmod(self.taken, self.num_grids)
            self._compute(site)  # for a known code, too: later sites see the features
            self.taken, self.logits = self.taken + 1, None
            embedded = self.input.embedded_at(site)
            if grid == 0:
                torch.index_select(self.embeddings[0], 0, column, out=embedded)
            else:
                embedded += F.embedding(column, self.embeddings[grid])
            if grid + 1 < self.num_grids:
                self.features += F.embedding(column, self.within_site[grid])
            elif site + 1 < self.height * self.width:
                seen = torch.mm(embedded, self.from_codes)
                reach = self.input.for_right.shape[1]
                self.input.pass_on(site % self.width, seen[:, :reach])
                self.attention.take_in(site, seen[:, reach:])

    def _compute(self, site: int) -> None:
        """Compute the features of the next site, unless that is done."""
        if site < self.computed:
            return
        row, column = divmod(site, self.width)
        if column == 0:
            self.input.start_row(row)
            self.convolutions.start_row(row)
        x = self.features = self.input.row[column]
        layers = self.convolutions.layers_at(row, column)
        per_block = len(layers) // self.attention.num_blocks
        for block in range(self.attention.num_blocks):
            for layer in layers[block * per_block : (block + 1) * per_block]:
                activated, kernel, inner, activated_inner, kernel_of_gates, gates, values, gate = layer
                elu_into(x, out=activated)
                elu_into(inner.addmm_(activated, kernel), out=activated_inner)
                gates.addmm_(activated_inner, kernel_of_gates)
                x.addcmul_(values, gate.sigmoid_())
            self.attention.attend(block, site, x)
        self.computed += 1


class InputCache:
    """The first layer at the sites of a row, column after column, and in it sample after sample."""

    def __init__(self, layer: InputLayer, place: Tensor, sizes: tuple[int, int, int]) -> None:
        batch_size, height, self.width = sizes
        above, left = layer.above.weight.detach(), layer.left.weight.detach()
        channels, _, self.reach, _ = above.shape
        # for each row above, the nearest first, and for each column, from left to right: (c, c)
        self.above = above.flip(2).permute(2, 3, 1, 0).contiguous()
        self.for_right = left[:, :, 0].flip(2).permute(1, 2, 0).flatten(1)  # (c, (k-1)·c), the nearest site's first
        constant = bias_of(layer.above) + bias_of(layer.left)
        self.constants = (place @ layer.position.weight.detach().flatten(1).T + constant).view(
            height, self.width, 1, channels
        )
        # embedded codes of the rows that a kernel sees, each row in the place of the one that is seen no longer
        self.embedded = place.new_zeros(self.reach, self.width, batch_size, channels)
        # columns beyond the last are never read
        self.with_margin = place.new_zeros(self.width + self.reach, batch_size, channels)
        self.row = self.with_margin[: self.width].unbind(0)

    def embedded_at(self, site: int) -> Tensor:
        """Return where the sum of a site's embedded codes (b, c) belongs."""
        row, column = divmod(site, self.width)
        return self.embedded[row % self.reach, column]

    def start_row(self, row: int) -> None:
        """Compute what the sites of a row see of the rows above."""
        features, width = self.with_margin, self.width
        features[:width] = self.constants[row]
        for up, side in product(range(1, min(row, self.reach) + 1), range(-self.reach, self.reach + 1)):
            if abs(side) < width:
                seen = self.embedded[(row - up) % self.reach, max(0, side) : width + min(0, side)]
                seeing = features[max(0, -side) : width - max(0, side)]
                seeing.flatten(0, 1).addmm_(seen.flatten(0, 1), self.above[up - 1, side + self.reach])

    def pass_on(self, column: int, seen: Tensor) -> None:
        """Add what the sites on the right see of the codes of a site: (b, (k-1)·c)."""
        self.with_margin[column + 1 : column + 1 + self.reach] += seen.unflatten(1, (self.reach, -1)).transpose(0, 1)
