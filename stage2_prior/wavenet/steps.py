"""Steps of the WaveNet: each layer keeps the inputs that later codes need in a queue (Paine et al. 2016, 1611.09482).

Shapes: b batch, r channels, s skip channels, d dilation of a layer, N codes, K num_embeddings of a grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from codegrid.codes import Layout
from codegrid.stage2_prior.sampling.sequential import site_by_site

if TYPE_CHECKING:
    from codegrid.stage2_prior.coarser import Conditioning

    from .network import Layer, WaveNetNetwork

AHEAD = 256  # positions whose conditions pass through all layers at once


class Flat(NamedTuple):
    """A layer, laid out for a single position."""

    taps: Tensor  # (2r, 2r): of the input d codes ago, and of the present one
    bias: Tensor  # (2r,)
    out: Tensor  # (r, r + s)
    out_bias: Tensor  # (r + s,)
    queue: Tensor  # (d, b, r): the inputs of the last d positions; 0 before the first, as `Layer` pads


class WaveNetSteps:
    """Steps of one code each: call `next_logits()`, then `append` the codes that were drawn."""

    @torch.no_grad()
    def __init__(self, network: WaveNetNetwork, layout: Layout, batch_size: int, given: Conditioning) -> None:
        self.network, self.given, self.order = network, given, site_by_site(layout)
        self.map = network.given_map(given, [grid.shape for grid in layout])
        self.layers = [flatten(layer, batch_size) for layer in network.layers]  # type: ignore[arg-type]
        self.waiting = [network.start.expand(batch_size, -1)]  # inputs (b, r) of positions
        self.position = 0  # the next one
        self.is_constant = self.map is None or self.map.shape[2] == 1
        self.given_here = network.of_layers(given, self.map) if self.is_constant else torch.empty(0)
        self.logits: Tensor | None = None

    @torch.no_grad()
    def next_logits(self) -> Tensor:
        """Return the logits (b, 1, K) of the next code."""
        if self.logits is None:
            for x in self.waiting:
                total = self._take_in(x)
            self.waiting.clear()
            grid, _ = self.order[self.position - 1]
            self.logits = self.network.heads[grid](total[..., None]).mT.contiguous()
        return self.logits

    @torch.no_grad()
    def append(self, codes: Tensor) -> None:
        """Append the codes (b, 1) whose logits were returned last, or known ones (b, m) of several steps."""
        first = self.position + len(self.waiting) - 1
        grids = [grid for grid, _ in self.order[first : first + codes.shape[1]]]
        tables = self.network.embeddings
        self.waiting += [tables[grid](column) for grid, column in zip(grids, codes.unbind(1), strict=True)]
        if grids:
            self.logits = None

    def _take_in(self, x: Tensor) -> Tensor:
        """Pass a position's input (b, r) through all layers; return the sum (b, s) of what they give."""
        of_layers = self._conditions().chunk(len(self.layers), dim=1)
        total: Tensor | None = None
        channels = x.shape[1]
        for layer, of_layer in zip(self.layers, of_layers, strict=True):
            here = self.position % len(layer.queue)
            both = torch.cat([layer.queue[here], x], dim=1)
            layer.queue[here] = x
            kept, gate = (torch.addmm(layer.bias, both, layer.taps) + of_layer).chunk(2, dim=1)
            more = torch.addmm(layer.out_bias, kept.tanh() * gate.sigmoid(), layer.out)
            x = x + more[:, :channels]
            total = more[:, channels:] if total is None else total + more[:, channels:]
        self.position += 1
        assert total is not None
        return total

    def _conditions(self) -> Tensor:
        """Return what all layers are given at the next position: (b or 1, L · 2r)."""
        if self.is_constant:
            return self.given_here[..., 0]
        place = self.position % AHEAD
        if not place:
            some = self.map[:, :, self.position : self.position + AHEAD]  # type: ignore[index]
            self.given_here = self.network.of_layers(self.given, some)
        return self.given_here[..., place]


def flatten(layer: Layer, batch_size: int) -> Flat:
    """Return a layer with its weights laid out for one position, and an empty queue."""
    weight = layer.filter.weight.detach()  # (2r, r, 2)
    taps = torch.cat([weight[..., 0], weight[..., 1]], dim=1).T.contiguous()
    queue = weight.new_zeros(layer.dilation, batch_size, layer.channels)
    out, out_bias = layer.out.weight.detach()[..., 0].T.contiguous(), layer.out.bias
    assert layer.filter.bias is not None and out_bias is not None
    return Flat(taps, layer.filter.bias.detach(), out, out_bias.detach(), queue)
