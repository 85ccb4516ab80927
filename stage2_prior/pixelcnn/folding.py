"""Folded weights for the cached steps: fewer operations, the same numbers.

Gates. tanh(x) = 2σ(2x) − 1, and a CPU takes six times as long for tanh as for σ. So the half of a layer's weights that
makes values is doubled: with (v, g) = σ of both halves, tanh(x)·σ(y) = −(g − 2·v·g), two operations. The minus goes
into the weights that read the gate. Neither rounds anything.

Biases. The horizontal stack's residual stream is kept without the biases that layers add to it: their contribution to a
layer at its own site is part of the layer's constant. `shifts` add them where a site is seen from the right, because a
site beyond the grid's edge must be seen as 0; in the heads max(x, −B) = relu(x + B) − B, where x includes what the
site's earlier codes add.

Shapes: b batch, c channels, l layers, K num_embeddings of a grid, r rows that a kernel sees, k its columns, w width of
the grid, s channels of the coarser grids' map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from .network import PixelCNNNetwork

GATE_SIGN = -1  # of a folded gate's output


class VerticalWeights:
    """Folded weights of the vertical stack, and of the path from it to the horizontal one."""

    def __init__(self, network: PixelCNNNetwork) -> None:
        layers = network.gated_layers()
        self.double = double = _double_values(network)
        # for each layer: (2c, c, r, k)
        signs = [double if layer.first else GATE_SIGN * double for layer in layers]
        self.kernels = [
            _channels_last(layer.vertical.weight * sign[:, None, None, None])
            for layer, sign in zip(layers, signs, strict=True)
        ]
        self.biases = [_bias(layer.vertical) * double for layer in layers]
        # reads the gate's input, in which the values' half is doubled
        onward = torch.stack([layer.vertical_to_horizontal.weight for layer in layers])
        self.onward = (onward * (double[:, None] / double)[:, :, None, None]).unbind(0)
        # added whatever the condition is
        constants = []
        missing = double.new_zeros(len(double) // 2)
        for layer in layers:
            constant = _bias(layer.vertical_to_horizontal) + _bias(layer.horizontal)
            if not layer.first:
                constant = constant + layer.horizontal.weight[:, :, 0, -1] @ missing
            constants.append(double * constant)
            missing = missing + _bias(layer.horizontal_out)
        self.constants = torch.stack(constants)[:, None]  # (l, 1, 2c)
        self.conditions = [layer.condition.weight.clone() for layer in layers if layer.condition is not None]
        # what a site of the map adds to the vertical and to the horizontal gates: (2, l, s, 2c)
        maps = [layer.of_map.weight.flatten(1).unflatten(0, (2, -1)) for layer in layers if layer.of_map is not None]
        self.of_map = (torch.stack(maps, 1) * double[:, None]).mT.contiguous() if maps else None

    def added(self, conditions: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return what conditions (b,) add to the vertical and the horizontal gates of each layer: two (l, b, 2c).

        Without conditions: None and the constants (l, 1, 2c).
        """
        if conditions is None:
            return None, self.constants
        added = torch.stack([F.embedding(conditions, table) for table in self.conditions])
        vertical, horizontal = added.chunk(2, dim=2)
        return self.double * vertical, self.constants + self.double * horizontal

    def added_at(self, row_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what a row (w, b, s) of the map adds to both gates of each layer: two (l, w, b, 2c)."""
        assert self.of_map is not None
        vertical, horizontal = torch.matmul(row_map.flatten(0, 1), self.of_map).unflatten(2, row_map.shape[:2])
        return vertical, horizontal


class HeadWeights(NamedTuple):
    """Folded weights of the head of one grid."""

    hidden: torch.Tensor  # (c, 4c)
    hidden_bias: torch.Tensor  # (4c,)
    logits: torch.Tensor  # (4c, K)
    logits_bias: torch.Tensor  # (K,)


class HorizontalWeights:
    """Folded weights of the horizontal stack and the heads."""

    def __init__(self, network: PixelCNNNetwork) -> None:
        double = _double_values(network)
        layers = network.gated_layers()
        first, *rest = layers
        # what a code of each grid adds to the sites on its right in the first layer: (reach, K, 2c), the nearest first
        self.tables = []
        for embedding in network.tables():
            from_codes = torch.einsum("kc,ocd->dko", embedding.weight, first.horizontal.weight[:, :, 0])
            self.tables.append((from_codes * double).flip(0))
        # for every layer but the first, from the sites a kernel sees, the own one last: (l-1, (reach + 1)·c, 2c)
        none = first.horizontal.weight.new_zeros(0, len(double), len(double) // 2, 1)
        kernels = torch.stack([layer.horizontal.weight[:, :, 0] for layer in rest]) if rest else none
        self.kernels = (kernels * double[:, None, None]).permute(0, 3, 2, 1).flatten(1, 2)
        # for every layer, from the gate: (l, c, c)
        self.out = GATE_SIGN * torch.stack([layer.horizontal_out.weight.flatten(1) for layer in layers]).mT
        # the biases that the residual stream lacks after each layer: (l, c)
        missing = torch.stack([_bias(layer.horizontal_out) for layer in layers]).cumsum(0)
        self.shifts, self.floor = missing[:-1, None], -missing[-1]
        self.heads = []
        for head in network.heads:
            _, hidden, _, logits = cast("list[nn.Conv2d]", list(head.children()))
            weight = hidden.weight.flatten(1).T
            bias = _bias(hidden) + missing[-1] @ weight
            self.heads.append(
                HeadWeights(weight.clone(), bias, logits.weight.flatten(1).T.clone(), _bias(logits).clone())
            )
        self.within_site = [
            cast(nn.Embedding, table).weight.clone() for table in network.within_site
        ]  # (K, c) of each grid but the last


class FoldedWeights:
    """All weights of a network, folded; they share no memory with its parameters."""

    def __init__(self, network: PixelCNNNetwork) -> None:
        self.embeddings = [table.weight.clone() for table in network.tables()]  # (K, c) of each grid
        self.vertical, self.horizontal = VerticalWeights(network), HorizontalWeights(network)


def _bias(layer: nn.Conv2d) -> torch.Tensor:
    return cast(torch.Tensor, layer.bias)  # every layer here has one


def _double_values(network: PixelCNNNetwork) -> torch.Tensor:
    """Return (2c,) factors: 2 for the channels that make values, 1 for those that make gates."""
    table = network.tables()[0]
    ones = table.weight.new_ones(table.embedding_dim)
    return torch.cat([2 * ones, ones])


def _channels_last(kernel: torch.Tensor) -> torch.Tensor:
    return kernel.contiguous(memory_format=torch.channels_last)  # the layout of the rows: otherwise both are copied
