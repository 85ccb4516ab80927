"""The prior's weights as the cached sampler uses them: fewer operations, the same numbers.

Gates. tanh(x) = 2σ(2x) − 1, and a CPU takes six times as long for tanh as for σ. So the signal's half of a layer's
weights is doubled: with (s, o) = σ of both halves, tanh(x)·σ(y) = −(o − 2·s·o), two operations. The minus goes into the
weights that read the gate. Neither rounds anything.

Biases. The horizontal stack's residual stream is kept without the biases that layers add to it: what these would
bring to a layer at its own site is part of the layer's constant. `shifts` bring them back where a site is seen from the
right, as a site beyond the grid's edge must be seen as 0; in the head max(x, −B) = relu(x + B) − B.

Shapes: b batch, c channels, l layers, K num_embeddings, r rows that a kernel sees, k its columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .network import GatedPixelCNN

GATE_SIGN = -1  # of what a folded gate gives


class VerticalWeights:
    """The vertical stack's, and the way from it to the horizontal one."""

    def __init__(self, prior: GatedPixelCNN, conditions: torch.Tensor | None) -> None:
        layers, double = prior.layers, _double_signal(prior)
        # for each layer its kernel (2c, c, r, k), for rows in slots of which number 0, 1, ... is the newest
        first = _for_slots(layers[0].vertical.weight[None] * double[:, None, None, None])
        self.kernels = [[kernel[0] for kernel in first]]
        if len(layers) > 1:
            rest = torch.stack([layer.vertical.weight for layer in layers[1:]])
            rest *= GATE_SIGN * double[:, None, None, None]
            self.kernels += zip(*_for_slots(rest), strict=True)
        self.biases = [layer.vertical.bias * double for layer in layers]
        # reads what the gate does, with the signal's half doubled
        onward = torch.stack([layer.vertical_to_horizontal.weight for layer in layers])
        self.onward = (onward * (double[:, None] / double)[:, :, None, None]).unbind(0)
        added = [] if conditions is None else [layer.condition(conditions).chunk(2, dim=1) for layer in layers]
        self.conditions = [double * vertical for vertical, _ in added] or None
        # all that is the same in every row, (2c,) or (b, 2c)
        self.constants = []
        missing = layers[0].horizontal.bias.new_zeros(prior.channels)
        for i, layer in enumerate(layers):
            constant = layer.vertical_to_horizontal.bias + layer.horizontal.bias
            if i:
                constant = constant + layer.horizontal.weight[:, :, 0, -1] @ missing
            self.constants.append(double * (constant + added[i][1] if added else constant))
            missing = missing + layer.horizontal_out.bias


class HorizontalWeights:
    """The horizontal stack's, and the head's."""

    def __init__(self, prior: GatedPixelCNN) -> None:
        double = _double_signal(prior)
        first, *rest = prior.layers
        # what a code gives to the sites on its right in the first layer: (reach, K, 2c), the next one first
        from_codes = torch.einsum("kc,ocd->dko", prior.embedding.weight, first.horizontal.weight[:, :, 0])
        self.tables = (from_codes * double).flip(0)
        # of every layer but the first, from the sites a kernel sees, the own one last: (l-1, (reach + 1)·c, 2c)
        none = first.horizontal.weight.new_zeros(0, 2 * prior.channels, prior.channels, 1)
        kernels = torch.stack([layer.horizontal.weight[:, :, 0] for layer in rest]) if rest else none
        self.kernels = (kernels * double[:, None, None]).permute(0, 3, 2, 1).flatten(1, 2)
        # of every layer, from the gate: (l, c, c)
        self.out = GATE_SIGN * torch.stack([layer.horizontal_out.weight.flatten(1) for layer in prior.layers]).mT
        # what the residual stream lacks behind each layer: (l, c)
        missing = torch.stack([layer.horizontal_out.bias for layer in prior.layers]).cumsum(0)
        self.shifts, self.floor = missing[:-1, None], -missing[-1]
        hidden, logits = prior.head[1], prior.head[3]
        self.hidden, self.logits = hidden.weight.flatten(1).T, logits.weight.flatten(1).T
        self.hidden_bias, self.logits_bias = hidden.bias + missing[-1] @ self.hidden, logits.bias


def _double_signal(prior: GatedPixelCNN) -> torch.Tensor:
    """2 for the signal's channels, 1 for the opening's: (2c,)."""
    ones = prior.embedding.weight.new_ones(prior.channels)
    return torch.cat([2 * ones, ones])


def _for_slots(kernels: torch.Tensor) -> list[torch.Tensor]:
    """Kernels (l, 2c, c, r, k), whose last row is for the newest: the same for each slot that may be the newest one."""
    in_memory = kernels.permute(0, 1, 3, 4, 2).contiguous()  # channels last, as the rows are: else both are copied
    return [in_memory.roll(newest + 1, dims=2).permute(0, 1, 4, 2, 3) for newest in range(kernels.shape[3])]
