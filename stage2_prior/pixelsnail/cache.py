"""Cached steps of PixelSNAIL, which compute nothing of the forward pass twice.

The part of a convolution's kernel that lies in finished rows is one matrix product for each of its sites, for all
columns of a new row and all layers at once. Per site, the part on its left is one for all layers, too. So a layer is
left with its own site, and with attention over the keys and values of earlier sites, which are kept.

A site is a chain of small operations, and takes as long as they are many: tensors are written in place, through views
that are made once, and products with the same input are one.

Shapes: b batch, c channels, h w code grid, n = h·w sites, k kernel, l layers, B blocks, a num_heads · head_channels.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.budget import check_memory
from codegrid.codes import Layout
from codegrid.stage2_prior.sampling.sequential import site_by_site

from .layers import positions

if TYPE_CHECKING:
    from codegrid.stage2_prior.coarser import Conditioning

    from .layers import InputLayer
    from .network import PixelSNAILNetwork

elu_into = torch.ops.aten.elu.out  # `F.elu` cannot write into a tensor


class PixelSNAILSteps:
    """Steps of one code each: call `next_logits()`, then `append` the codes that were drawn."""

    @torch.no_grad()
    def __init__(self, network: PixelSNAILNetwork, layout: Layout, batch_size: int, given: Conditioning) -> None:
        self.order = site_by_site(layout)
        self.num_grids, (self.height, self.width) = len(layout), layout[0].shape
        self.embeddings = [_weight(table) for table in network.embeddings]
        self.within_site = [_weight(table) for table in network.within_site]
        self.heads = [[_transposed(layer) for layer in (head[1], head[3])] for head in network.heads]  # type: ignore[index]
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
        constant = _bias(layer.above) + _bias(layer.left)
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


class Convolutions:
    """One convolution of each layer, at the sites of a row, column after column, and in it sample after sample."""

    def __init__(self, layers: list[nn.Conv2d], batch_size: int, width: int) -> None:
        weights = torch.stack([layer.weight.detach() for layer in layers])
        count, out_channels, channels, kernel, _ = weights.shape
        self.reach = kernel - 1
        # for each row from the own one up, and for each column from the own one to the left: (l, in, out)
        self.taps = weights.flip(3, 4).permute(3, 4, 0, 2, 1).contiguous()
        self.constants = torch.stack([_bias(layer) for layer in layers])[:, None]  # (l, 1, out), or (l, b, out)
        # inputs of the rows that a kernel sees, each row in the place of the one that is seen no longer
        self.seen = weights.new_empty(self.reach, count, width, batch_size, channels)
        self.from_above = weights.new_empty(count, width, batch_size, out_channels)
        self.out = weights.new_empty(width, count, batch_size, out_channels)  # with this, a site is one block of memory

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
            self.out[column].baddbmm_(self.seen[row % self.reach, :, column - left], self.taps[0, left])


class ConvolutionCache:
    """The two convolutions of all residual layers."""

    def __init__(self, network: PixelSNAILNetwork, batch_size: int, width: int, given: Conditioning) -> None:
        layers = network.residual_layers()
        self.inner = Convolutions([layer.inner for layer in layers], batch_size, width)
        self.gates = Convolutions([layer.gates for layer in layers], batch_size, width)
        if given.rows is not None:
            tables = [_weight(layer.condition) for layer in layers if layer.condition is not None]
            added = torch.stack([F.embedding(given.rows, table) for table in tables])
            self.gates.constants = self.gates.constants + added
        self.rows_of_map: tuple[Tensor, ...] = ()  # (w·b, s) each
        if given.site_map is not None:
            self.rows_of_map = given.site_map.permute(2, 3, 0, 1).flatten(1, 2).unbind(0)
            self.of_map = torch.cat([_transposed(layer.of_map)[0] for layer in layers if layer.of_map is not None], 1)
        self.views = [[self._views(slot, column) for column in range(width)] for slot in range(self.inner.reach)]

    def _views(self, slot: int, column: int) -> list[tuple[Tensor, ...]]:
        """Return, for each layer at a site, input, kernel and output of both convolutions, and the output's halves."""
        parts: list[Tensor] = []
        for each in (self.inner, self.gates):
            parts += each.seen[slot, :, column], each.taps[0, 0], each.out[column]
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


class AttentionCache:
    """The attention of all blocks, with the keys and values of the start and of all earlier sites."""

    def __init__(self, network: PixelSNAILNetwork, place: Tensor, sizes: tuple[int, int, int]) -> None:
        layers = network.attention_layers()
        batch_size, num_sites, self.num_blocks = sizes[0], len(place), len(layers)
        self.heads, self.wide = layers[0].num_heads, layers[0].wide
        per_head = self.wide // self.heads
        held = 2 * self.num_blocks * batch_size * self.wide * num_sites * place.element_size()
        check_memory(f"the keys and values of {batch_size:,} samples", held, "draw fewer at once (`batch_size`)")
        # keys (B, b·heads, a/heads, n) and values (B, b·heads, n, a/heads)
        self.keys = place.new_empty(self.num_blocks, batch_size * self.heads, per_head, num_sites)
        self.values = self.keys.new_empty(*self.keys.shape[:2], num_sites, per_head)
        self.for_known = torch.cat([_transposed(layer.from_codes)[0] for layer in layers], dim=1)  # (c, B·2a)
        self.from_features, constants = [], []
        for block, layer in enumerate(layers):
            weight, bias = _transposed(layer.from_features)
            from_position = place @ _transposed(layer.from_position)[0]
            constant = bias + F.pad(from_position, (0, len(bias) - 3 * self.wide))
            for part in (weight, constant):
                part[:, : self.wide] /= math.sqrt(per_head)  # as scaled dot product attention does
            self.from_features.append(weight)
            constants.append(constant.unbind(0))
            key, value = layer.start.detach().view(2, self.heads, per_head).repeat(1, batch_size, 1)
            self.keys[block, :, :, 0], self.values[block, :, 0] = key, value
        self.constants = constants
        self.from_attended = [_transposed(layer.from_attended)[0] for layer in layers]
        # query, key, value and gates at a site
        self.made = place.new_empty(self.num_blocks, batch_size, self.from_features[0].shape[1])
        self.activated = place.new_empty(batch_size, self.from_features[0].shape[0])
        by_head = self.num_blocks, batch_size, self.heads, per_head
        self.known_at = (
            self.made[:, :, self.wide : 3 * self.wide].unflatten(2, (2, *by_head[2:])).permute(2, 0, 1, 3, 4)
        )
        self.keys_by_head = self.keys.view(*by_head, num_sites)
        self.values_by_head = self.values.view(*by_head[:3], num_sites, per_head)
        self.views = []
        for made in self.made:
            gates = made[:, 3 * self.wide :]
            self.views.append((made, made[:, : self.wide], gates, *gates.chunk(2, dim=1)))

    def attend(self, block: int, site: int, x: Tensor) -> None:
        """Add to the features x (b, c) of a site what it finds at earlier ones."""
        made, query, gates, values, gate = self.views[block]
        elu_into(x, out=self.activated)
        torch.addmm(self.constants[block][site], self.activated, self.from_features[block], out=made)
        queries = query.reshape(len(query) * self.heads, 1, -1)
        weights = torch.bmm(queries, self.keys[block, :, :, : site + 1]).softmax(2)
        attended = torch.bmm(weights, self.values[block, :, : site + 1]).view(len(query), self.wide)
        gates.addmm_(attended, self.from_attended[block])
        x.addcmul_(values, gate.sigmoid_())

    def take_in(self, site: int, from_codes: Tensor) -> None:
        """Keep the keys and values of a site, given what its codes add to them (b, B·2a)."""
        added = from_codes.unflatten(1, (self.num_blocks, 2, self.heads, -1)).permute(2, 1, 0, 3, 4)
        torch.add(self.known_at[0], added[0], out=self.keys_by_head[..., site + 1])
        torch.add(self.known_at[1], added[1], out=self.values_by_head[..., site + 1, :])


def _weight(table: nn.Module) -> Tensor:
    return cast(nn.Embedding, table).weight.detach()


def _bias(layer: nn.Conv2d) -> Tensor:
    return cast(Tensor, layer.bias).detach()  # every layer that is asked has one


def _transposed(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the weight (in, out) of a 1×1 convolution, and its bias (out,), 0 if it has none."""
    conv = cast(nn.Conv2d, layer)
    weight = conv.weight.detach().flatten(1).T.contiguous()
    return weight, weight.new_zeros(weight.shape[1]) if conv.bias is None else _bias(conv).clone()
