"""Cached steps of the gated PixelCNN, which compute nothing of the forward pass twice.

The vertical stack is computed one row at a time, the horizontal one site by site, the heads code by code. Only the part
of each layer's input that a kernel still reaches is kept: memory grows with the width of the grid, not with its area.

A site is a chain of small operations, and takes as long as they are many; `folding.py` explains how four per layer
suffice. All tensors are written in place, through views that are made once.

Shapes: b batch, c channels, h w code grid, l layers, K num_embeddings of a grid, r rows that a kernel sees, q grids,
s channels of the coarser grids' map.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from codegrid.codes import Layout
from codegrid.stage2_prior.sampling.sequential import site_by_site

from .compiled import compiled_site
from .folding import HorizontalWeights, VerticalWeights

if TYPE_CHECKING:
    from .layers import Conditioning
    from .network import PixelCNNNetwork

# cuBLAS takes ten times as long for the chain's products of 8 to 16 rows as for 17 (H100; 2 to 4 rows are fast)
SLOW_ROWS = {"cuda": range(5, 17)}


class PixelCNNSteps:
    """Steps of one code each: call `next_logits()`, then `append` the codes that were drawn."""

    def __init__(
        self,
        network: PixelCNNNetwork,
        layout: Layout,
        batch_size: int,
        given: Conditioning,
        compiled: bool = False,
    ) -> None:
        self.order = site_by_site(layout)
        self.height, self.width = layout[0].shape
        weights = network.folded()
        self.embeddings = weights.embeddings
        self.vertical = VerticalStack(weights.vertical, batch_size, self.width, given.rows)
        self.horizontal = (CompiledStack if compiled else HorizontalStack)(weights.horizontal, batch_size, self.width)
        # codes of the row that is being drawn, for each grid
        of_row = torch.zeros(self.width, batch_size, dtype=torch.int64, device=self.embeddings[0].device)
        self.codes = [of_row.clone() for _ in layout]
        self.of_site: list[torch.Tensor] = []  # codes (b,) of the site that is being drawn
        self.start(given)

    def start(self, given: Conditioning) -> None:
        """Begin new grids, with new conditions."""
        self.row = self.column = self.grid = 0
        self.of_site.clear()
        self.logits: torch.Tensor | None = None
        # (h, w, b, s): a row is one matrix
        self.map_rows = None if given.site_map is None else given.site_map.permute(2, 3, 0, 1).contiguous()
        self.vertical.start(given.rows)
        self._start_row()

    def next_logits(self) -> torch.Tensor:
        """Return the logits (b, 1, K) of the next code, in raster order, all codes of a site before the next site."""
        if self.logits is None:
            self.logits = self.horizontal.logits_at(self.column, self.grid).unsqueeze(1)
        return self.logits

    def append(self, codes: torch.Tensor) -> None:
        """Append the codes (b, 1) whose logits were returned last, or known ones (b, m) of several steps.

        Whole rows of known codes only pass through the vertical stack.
        """
        of_row, done = self.width * len(self.codes), 0
        while done < codes.shape[1]:
            at_start = self.column == self.grid == 0 and self.logits is None
            if at_start and codes.shape[1] - done >= of_row:
                row = codes[:, done : done + of_row].unflatten(1, (self.width, -1))
                for of_grid, new in zip(self.codes, row.unbind(2), strict=True):
                    of_grid.copy_(new.T)
                self._start_next_row()
                done += of_row
            else:
                self._append_one(codes[:, done])
                done += 1

    def _append_one(self, codes: torch.Tensor) -> None:
        if self.grid == 0:
            self.next_logits()  # for a known code, too: sites on its right see the features
        self.logits = None
        self.codes[self.grid][self.column] = codes
        self.of_site.append(codes)
        if len(self.of_site) < len(self.codes):
            self.horizontal.take_in(self.grid, codes)
            self.grid += 1
            return
        self.grid = 0
        self.column += 1
        if self.column == self.width:
            self._start_next_row()
        else:
            self.horizontal.pass_on(self.column, self.of_site)
        self.of_site.clear()

    def _start_next_row(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row < self.height:
            first, *others = self.codes
            embedded = F.embedding(first, self.embeddings[0])
            for codes, embedding in zip(others, self.embeddings[1:], strict=True):
                embedded += F.embedding(codes, embedding)
            self.vertical.take_in(embedded)
            self._start_row()

    def _start_row(self) -> None:
        map_row = None if self.map_rows is None else self.map_rows[self.row]
        self.vertical.start_row(self.horizontal.start_row(), map_row)


class VerticalStack:
    """The vertical stack, computed row by row for all samples at once.

    A row is one matrix: column after column, and within a column sample after sample. So the next column is b rows of
    the matrix away, and a convolution along the row is dilated by b. The rows of each layer's input that a kernel sees
    are kept, the newest one last.
    """

    def __init__(self, weights: VerticalWeights, batch_size: int, width: int, conditions: torch.Tensor | None) -> None:
        self.weights = weights
        self.width, self.batch_size = width, batch_size
        self.for_gates, self.for_horizontal = weights.added(conditions)
        self.seen, self.rows = [], []
        for kernel in weights.kernels:
            _, channels, rows, columns = kernel.shape
            margin = columns // 2  # stays 0: the area beyond the grid's edges
            seen = kernel.new_zeros(rows, width + 2 * margin, batch_size, channels)
            self.seen.append(seen)
            self.rows.append(seen[:, margin : margin + width].unbind(0))

    def start(self, conditions: torch.Tensor | None) -> None:
        """Forget all rows, and set new conditions (b,)."""
        for seen in self.seen:
            seen.zero_()
        for_gates, for_horizontal = self.weights.added(conditions)
        if self.for_gates is not None and for_gates is not None:
            self.for_gates.copy_(for_gates)
            self.for_horizontal.copy_(for_horizontal)

    def take_in(self, embedded: torch.Tensor) -> None:
        """Store the embedded codes (w, b, c) of the row just finished."""
        self._next_row(0).copy_(embedded)

    def start_row(self, from_above: torch.Tensor, map_row: torch.Tensor | None = None) -> None:
        """Write the input from above of a new row's sites, with its row (w, b, s) of the map, into (w, l, b, 2c)."""
        weights, last = self.weights, len(self.seen) - 1
        for_gates, for_horizontal = self._added(map_row)
        for i, seen in enumerate(self.seen):
            as_image = seen.flatten(1, 2).permute(2, 0, 1)[None]  # (1, c, r, columns·b), its channels last in memory
            above = F.conv2d(as_image, weights.kernels[i], weights.biases[i], dilation=(1, self.batch_size))
            onward = self._by_column(F.conv2d(above, weights.onward[i]))
            torch.add(onward, for_horizontal[i], out=from_above[:, i])
            if i < last:
                gated = self._by_column(above)
                if for_gates is not None:
                    gated += for_gates[i]
                values, gate = gated.chunk(2, dim=2)
                _gate(gated, values, gate, out=self._next_row(i + 1))

    def _added(self, map_row: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return what is added to both gates in a row: (l, b, 2c), or with a map (l, w, b, 2c)."""
        if map_row is None:
            return self.for_gates, self.for_horizontal
        vertical, horizontal = self.weights.added_at(map_row)
        if self.for_gates is not None:
            vertical += self.for_gates[:, None]
        return vertical, horizontal + self.for_horizontal[:, None]

    def _next_row(self, layer: int) -> torch.Tensor:
        """Return where a layer's input (w, b, c) for a new row goes, after moving the older rows up by one."""
        for older, newer in pairwise(self.rows[layer]):
            older.copy_(newer)
        return self.rows[layer][-1]

    def _by_column(self, image: torch.Tensor) -> torch.Tensor:
        """Rearrange (1, 2c, 1, w·b) to (w, b, 2c)."""
        return image.permute(0, 2, 3, 1).reshape(self.width, self.batch_size, -1)


class HorizontalStack:
    """The horizontal stack: the chain of all layers at one site, and its contribution to the sites on its right."""

    def __init__(self, weights: HorizontalWeights, batch_size: int, width: int) -> None:
        self.weights, like = weights, weights.out
        layers, channels, reach = *like.shape[:2], len(weights.tables[0])
        self.width, self.channels, self.batch_size = width, channels, batch_size
        slow = SLOW_ROWS.get(like.device.type, range(0))
        rows = slow.stop if batch_size in slow else batch_size  # rows after the batch are padding
        # input of sites from above and, in the first layer, from the left; columns beyond the last are never read
        self.from_above = like.new_zeros(width + reach, layers, rows, 2 * channels)
        columns = [column.unbind(0) for column in self.from_above[:width].unbind(0)]
        self.chains = [[(left, *left.chunk(2, dim=1)) for left in column] for column in columns]
        # for each layer but the first: the inputs that its kernel reaches, the own site's last
        sites = weights.kernels.shape[1] // channels
        self.seen = like.new_zeros(layers - 1, rows, sites * channels)
        self.own = self.seen[:, :, -channels:]
        self.result = like.new_empty(rows, channels)  # input of the heads
        self.inputs, self.kernels, self.out = (
            stacked.unbind(0) for stacked in (self.seen, weights.kernels, weights.out)
        )
        self.features = [*self.own.unbind(0), self.result]  # the residual stream after each layer
        self.gated = like.new_empty(rows, channels)

    def start_row(self) -> torch.Tensor:
        """Forget the row above, and return the tensor (w, l, b, 2c) for the new row's input from above."""
        self.seen.zero_()
        return self.from_above[: self.width, :, : self.batch_size]

    def logits_at(self, column: int, grid: int) -> torch.Tensor:
        """Return the logits (b, K) of a site's first code, or of a later one once `take_in` got those before it."""
        if grid == 0:
            self._run_chain(column)
        head = self.weights.heads[grid]
        hidden = torch.maximum(self.result, self.weights.floor)
        hidden = torch.addmm(head.hidden_bias, hidden, head.hidden).relu_()
        return torch.addmm(head.logits_bias, hidden, head.logits)[: self.batch_size]

    def _run_chain(self, column: int) -> None:
        """Compute the features of all layers at a site."""
        features, gated = self.features, self.gated
        for i, chain in enumerate(self.chains[column]):
            if i:
                chain[0].addmm_(self.inputs[i - 1], self.kernels[i - 1])
            _gate(chain[0], chain[1], chain[2], out=gated)
            if i:
                torch.addmm(features[i - 1], gated, self.out[i], out=features[i])
            else:
                torch.mm(gated, self.out[0], out=features[0])

    def take_in(self, grid: int, codes: torch.Tensor) -> None:
        """Let the heads of later grids see the codes (b,) of the own site."""
        self.result[: self.batch_size] += F.embedding(codes, self.weights.within_site[grid])

    def pass_on(self, column: int, of_site: list[torch.Tensor]) -> None:
        """Make the site left of `column`, whose codes (b,) of each grid are known now, visible from its right."""
        channels = self.channels
        for table, codes in zip(self.weights.tables, of_site, strict=True):
            self.from_above[column : column + len(table), 0, : self.batch_size] += table[:, codes]
        sites = self.seen.shape[2] // channels
        if sites > 2:
            self.seen[:, :, : -2 * channels] = self.seen[:, :, channels:-channels].clone()
        if sites > 1:
            torch.add(self.own, self.weights.shifts, out=self.seen[:, :, -2 * channels : -channels])


class CompiledStack(HorizontalStack):
    """The horizontal stack with `torch.compile`, which on a GPU records CUDA graphs."""

    def logits_at(self, column: int, grid: int) -> torch.Tensor:
        """Return the logits (b, K) of a site's code; on a GPU the next call overwrites them."""
        if grid:
            return super().logits_at(column, grid)
        w, head = self.weights, self.weights.heads[0]
        torch.compiler.cudagraph_mark_step_begin()
        logits, features = compiled_site(self.own.device.type)(
            self.from_above[column], self.seen[:, :, : -self.channels], (w.kernels, w.out, w.floor, *head)
        )
        self.own.copy_(features[:-1])
        if w.within_site:
            self.result.copy_(features[-1])
        return logits[: self.batch_size]


def _gate(x: torch.Tensor, values: torch.Tensor, gate: torch.Tensor, out: torch.Tensor) -> None:
    """Write the negated gated activation of x (..., 2c), whose halves are doubled values and gates, and overwrite x."""
    x.sigmoid_()
    torch.addcmul(gate, values, gate, value=-2, out=out)
