"""What the cached sampler remembers, so that nothing of the forward pass is computed twice.

The vertical stack is computed a whole row at a time, the horizontal one a site at a time. Of each layer's input
only what a kernel still reaches is kept: memory grows with the width of the grid, not with its area.

A site is a chain of small operations, and their number is what it costs; `folding.py` says how there come to be four a
layer. All tensors are written in place, and looked at through views that are made once.

Shapes: b batch, c channels, h w code grid, l layers, K num_embeddings, r rows that a kernel sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from .compiled import compiled_site
from .folding import HorizontalWeights, VerticalWeights

if TYPE_CHECKING:
    from .network import GatedPixelCNN


class PixelCNNCache:
    """One site's logits at a time: ask `next_logits()`, then `append` the codes that were drawn there."""

    def __init__(
        self,
        prior: GatedPixelCNN,
        batch_size: int,
        height: int,
        width: int,
        conditions: torch.Tensor | None,
        compiled: bool = False,
    ) -> None:
        self.height, self.width = height, width
        self.row = self.column = 0
        self.embedding = prior.embedding.weight
        self.vertical = VerticalStack(prior, batch_size, width, conditions)
        self.horizontal = (CompiledStack if compiled else HorizontalStack)(prior, batch_size, width)
        self.codes = torch.zeros(width, batch_size, dtype=torch.int64, device=self.embedding.device)
        self.vertical.start_row(self.horizontal.start_row())

    def append_rows(self, codes: torch.Tensor) -> None:
        """Take in whole rows of known codes (b, rows, w), at the start of a row: only the vertical stack sees them."""
        for row in codes.unbind(1):
            self.codes.copy_(row.T)
            self._start_next_row()

    def next_logits(self) -> torch.Tensor:
        """Logits (b, K) of the next site in raster order."""
        return self.horizontal.logits_at(self.column)

    def append(self, codes: torch.Tensor) -> None:
        """Take in the codes (b,) of the site whose logits were given last."""
        self.codes[self.column] = codes
        self.column += 1
        if self.column == self.width:
            self._start_next_row()
        else:
            self.horizontal.pass_on(self.column, codes)

    def _start_next_row(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row < self.height:
            self.vertical.take_in(F.embedding(self.codes, self.embedding))
            self.vertical.start_row(self.horizontal.start_row())


class VerticalStack:
    """A row of all samples is one matrix: column after column, and within a column sample after sample.

    So a step to the next column is a step of b rows of the matrix, and a convolution along the row is dilated by b. The
    rows that a kernel sees are in slots, of which the newest row takes the oldest one's.
    """

    def __init__(self, prior: GatedPixelCNN, batch_size: int, width: int, conditions: torch.Tensor | None) -> None:
        self.weights = VerticalWeights(prior, conditions)
        self.row, self.width, self.batch_size = 0, width, batch_size
        self.seen, self.slots = [], []
        for layer in prior.layers:
            rows, columns = layer.vertical.kernel_size
            margin = columns // 2  # stays 0: what lies beyond the grid's edges
            seen = self.weights.biases[0].new_zeros(rows, width + 2 * margin, batch_size, prior.channels)
            self.seen.append(seen)
            self.slots.append(seen[:, margin : margin + width].unbind(0))

    def take_in(self, embedded: torch.Tensor) -> None:
        """The embedded codes (w, b, c) of the row just finished."""
        self.slots[0][(self.row - 1) % len(self.slots[0])].copy_(embedded)

    def start_row(self, prepared: torch.Tensor) -> None:
        """Write what a new row's sites get from above into `prepared` (w, l, b, 2c)."""
        weights, last = self.weights, len(self.seen) - 1
        for i, seen in enumerate(self.seen):
            as_image = seen.flatten(1, 2).permute(2, 0, 1)[None]  # (1, c, r, columns·b), its channels last in memory
            # the first layer's input is the row above
            kernel = weights.kernels[i][(self.row - (i == 0)) % len(seen)]
            above = F.conv2d(as_image, kernel, weights.biases[i], dilation=(1, self.batch_size))
            torch.add(self._by_column(F.conv2d(above, weights.onward[i])), weights.constants[i], out=prepared[:, i])
            if i < last:
                gated = self._by_column(above)
                if weights.conditions is not None:
                    gated += weights.conditions[i]
                slots = self.slots[i + 1]
                _gate(gated, *gated.chunk(2, dim=2), out=slots[self.row % len(slots)])
        self.row += 1

    def _by_column(self, image: torch.Tensor) -> torch.Tensor:
        """(1, 2c, 1, w·b) → (w, b, 2c)."""
        return image.permute(0, 2, 3, 1).reshape(self.width, self.batch_size, -1)


class HorizontalStack:
    """The chain of all layers at one site, and what the site gives to those on its right."""

    def __init__(self, prior: GatedPixelCNN, batch_size: int, width: int) -> None:
        self.weights = HorizontalWeights(prior)
        self.width, self.channels = width, prior.channels
        layers, channels, reach = len(prior.layers), prior.channels, len(self.weights.tables)
        like = prior.embedding.weight
        # what sites get from above and, in the first layer, from the left; beyond the last column nobody looks
        self.prepared = like.new_zeros(width + reach, layers, batch_size, 2 * channels)
        columns = [column.unbind(0) for column in self.prepared[:width].unbind(0)]
        self.chains = [[(left, *left.chunk(2, dim=1)) for left in column] for column in columns]
        # of each layer but the first the inputs that its kernel reaches, the own site's last
        sites = self.weights.kernels.shape[1] // channels
        self.seen = like.new_zeros(layers - 1, batch_size, sites * channels)
        self.own = self.seen[:, :, -channels:]
        self.result = like.new_empty(batch_size, channels)
        self.inputs, self.kernels, self.out = (
            stacked.unbind(0) for stacked in (self.seen, self.weights.kernels, self.weights.out)
        )
        self.features = [*self.own.unbind(0), self.result]  # the residual stream behind each layer
        self.gated = like.new_empty(batch_size, channels)

    def start_row(self) -> torch.Tensor:
        """Nothing stands left of the first column. Returns where the row's sites are prepared: (w, l, b, 2c)."""
        self.seen.zero_()
        return self.prepared[: self.width]

    def logits_at(self, column: int) -> torch.Tensor:
        """The logits (b, K) of a site."""
        weights, features, gated = self.weights, self.features, self.gated
        for i, chain in enumerate(self.chains[column]):
            if i:
                chain[0].addmm_(self.inputs[i - 1], self.kernels[i - 1])
            _gate(*chain, out=gated)
            if i:
                torch.addmm(features[i - 1], gated, self.out[i], out=features[i])
            else:
                torch.mm(gated, self.out[0], out=features[0])
        hidden = torch.maximum(self.result, weights.floor)
        hidden = torch.addmm(weights.hidden_bias, hidden, weights.hidden).relu_()
        return torch.addmm(weights.logits_bias, hidden, weights.logits)

    def pass_on(self, column: int, codes: torch.Tensor) -> None:
        """Let the site left of `column`, whose codes (b,) are known now, be seen from its right."""
        weights, channels = self.weights, self.channels
        self.prepared[column : column + len(weights.tables), 0] += weights.tables[:, codes]
        sites = self.seen.shape[2] // channels
        if sites > 2:
            self.seen[:, :, : -2 * channels] = self.seen[:, :, channels:-channels].clone()
        if sites > 1:
            torch.add(self.own, weights.shifts, out=self.seen[:, :, -2 * channels : -channels])


class CompiledStack(HorizontalStack):
    """The same with `torch.compile`, and on a GPU as CUDA graphs."""

    def logits_at(self, column: int) -> torch.Tensor:
        """The logits (b, K) of a site; on a GPU the next call overwrites them."""
        w = self.weights
        torch.compiler.cudagraph_mark_step_begin()
        logits, features = compiled_site(self.own.device.type)(
            self.prepared[column],
            self.seen[:, :, : -self.channels],
            (w.kernels, w.out, w.floor, w.hidden, w.hidden_bias, w.logits, w.logits_bias),
        )
        self.own.copy_(features)
        return logits


def _gate(x: torch.Tensor, signal: torch.Tensor, opening: torch.Tensor, out: torch.Tensor) -> None:
    """The gate's negative from x (..., 2c), whose halves are the doubled signal and the opening; x is overwritten."""
    x.sigmoid_()
    torch.addcmul(opening, signal, opening, value=-2, out=out)
