"""The transformer of VAR (Tian et al. 2024, arXiv 2404.02905) over codes of growing scales.

Shapes: b batch, *shape the m sites of a scale's grid, *sites those of the finest, d channels, D embedding_dim of the
codes' vectors, K num_embeddings of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codegrid.codes import Codes, Layout
from codegrid.scales import Phi, Scales, shrink
from codegrid.stage2_prior.options import NextScaleOptions
from codegrid.stage2_prior.transformer.layers import (
    Block,
    KeyValueCache,
    Positions,
    RMSNorm,
    initialise,
)
from codegrid.stage2_prior.transformer.rotations import rotation_at, site_coordinates

HEAD_SPREAD = 0.02  # of a new head's weights, in those of a usual layer: the first loss is that of chance


class Vectors(nn.Module):
    """The vectors (K, D) of a scale's codes: the tokenizer's, which training does not change."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self) -> Tensor:
        """Return the vectors."""
        return self.get_buffer("weight")


class NextScaleNetwork(nn.Module):
    """The network from the sums of coarser scales to logits: the part to use `torch.compile` on.

    It is shown, at each site of a scale, the sum of the coarser scales there, and a site looks at all sites of its own
    and of coarser scales. So a scale's logits see nothing of its own codes, and all of these can be drawn at once.

    Args:
        layout: the scales, coarse to fine.
        options: the sizes.
        num_conditions: rows of the table of labels; 0: none.
        scales: the vectors of the codes, and φ.
    """

    def __init__(self, layout: Layout, options: NextScaleOptions, num_conditions: int, scales: Scales) -> None:
        super().__init__()
        self.shapes = [grid.shape for grid in layout]
        self.sizes = [grid.num_sites for grid in layout]
        self.embeddings = nn.ModuleList(Vectors(table) for table in scales.entries)
        for name, tensor in scales.phi._asdict().items():
            self.register_buffer(f"phi_{name}", tensor)
        width, self.num_heads = options.channels, options.num_heads
        self.inward = nn.Linear(scales.entries[0].shape[1], width)
        self.condition = nn.Embedding(num_conditions, width) if num_conditions else None
        # each scale has its own, which tell it apart from the others
        self.positions = nn.ModuleList(Positions(shape, width) for shape in self.shapes)
        self.blocks = nn.ModuleList(
            Block(width, self.num_heads, normalise=True, condition_width=width * (num_conditions > 0))
            for _ in range(options.num_layers)
        )
        # scales of one codebook share a head: the coarse ones have too few sites to learn their own
        sizes = [grid.num_embeddings for grid in layout]
        sizes = sizes if len({*sizes}) > 1 else sizes[:1]
        self.heads = nn.ModuleList(nn.Sequential(RMSNorm(width), nn.Linear(width, size)) for size in sizes)
        initialise(self, options.num_layers)
        with torch.no_grad():
            for head in self.heads:
                head[-1].weight *= HEAD_SPREAD  # type: ignore[index]

    @property
    def scales(self) -> Scales:
        """The vectors of the codes, and φ."""
        phi = Phi(self.get_buffer("phi_weight"), self.get_buffer("phi_bias"))
        return Scales([vectors() for vectors in self.embeddings], phi, self.shapes)

    @torch.no_grad()
    def sums_of(self, codes: Codes) -> list[Tensor]:
        """Return the sum (b, D, *shape) of the scales before each one, in its shape, for codes (b, *shape) of all."""
        scales, total, sums = self.scales, self.sum_of_none(len(codes[0])), []
        for number, shape in enumerate(self.shapes):
            sums.append(shrink(total, shape))
            if number + 1 < len(codes):
                total = scales.add(total, codes[number], number)
        return sums

    def sum_of_none(self, count: int) -> Tensor:
        """Return the sum (b, D, *sites) before the first scale: zeros."""
        return self.get_buffer("phi_bias").new_zeros(count, self.inward.in_features, *self.shapes[-1])

    def forward(self, sums: Sequence[Tensor], rows: Tensor | None, dropout: float = 0.0) -> tuple[Tensor, ...]:
        """Return the logits (b, K, *shape) of each scale.

        Args:
            sums: those of the scales before each one, by `sums_of`.
            rows: (b,) of the table of labels, if there is one.
            dropout: the share of each layer's result to drop.
        """
        condition = None if self.condition is None else self.condition(rows)
        x = torch.cat([self.embed(number, before, condition) for number, before in enumerate(sums)], dim=1)
        turned = torch.cat([self.rotation(number, x) for number in range(len(self.shapes))], dim=1)
        scale = torch.cat([torch.full((size,), number, device=x.device) for number, size in enumerate(self.sizes)])
        for block in self.blocks:
            x = block(x, (turned, turned), scale[:, None] >= scale, condition=condition, dropout=dropout)
        features = zip(self.shapes, x.split(self.sizes, dim=1), strict=True)
        return tuple(self.read(number, part).mT.unflatten(2, shape) for number, (shape, part) in enumerate(features))

    def embed(self, number: int, before: Tensor, condition: Tensor | None) -> Tensor:
        """Return the features (b, m, d) of a scale's sites before the first layer.

        Args:
            number: of the scale.
            before: the sum of the scales before it (b, D, *shape).
            condition: the embedded labels (b, d), if there are any.
        """
        x: Tensor = self.inward(before.flatten(2).mT.to(self.inward.weight.dtype))
        x = x + self.positions[number]().to(x.dtype)
        return x if condition is None else x + condition[:, None].to(x.dtype)

    def read(self, number: int, features: Tensor) -> Tensor:
        """Return the logits (b, m, K) of a scale for the last layer's features (b, m, d)."""
        logits: Tensor = self.heads[min(number, len(self.heads) - 1)](features)
        return logits

    def rotation(self, number: int, like: Tensor) -> Tensor:
        """Return the rotations of a scale's sites, by where in the finest grid their middle lies."""
        coordinates = site_coordinates(self.shapes[number], self.shapes[-1], like.device)
        return rotation_at(coordinates, like.shape[-1] // self.num_heads, like)


class NextScaleSteps:
    """Steps of a whole grid each: call `next_logits()`, then `append` the codes that were drawn.

    The keys and values of coarser grids are kept, and the sum of their vectors.
    """

    @torch.no_grad()
    def __init__(self, network: NextScaleNetwork, rows: Tensor | None, batch_size: int) -> None:
        self.network, self.scales = network, network.scales
        self.order: Sequence[tuple[int, range]] = whole_grids(network.sizes)
        self.condition = None if network.condition is None else network.condition(rows)
        self.total = network.sum_of_none(batch_size)
        heads, width = network.num_heads, network.inward.out_features
        sites = sum(network.sizes)
        self.cache = KeyValueCache(len(network.blocks), batch_size, heads, sites, width // heads, self.total)
        self.number = 0  # of the next grid
        self.logits: Tensor | None = None

    @torch.no_grad()
    def next_logits(self) -> Tensor:
        """Return the logits (b, m, K) of the next grid."""
        if self.logits is None:
            network, number = self.network, self.number
            x = network.embed(number, shrink(self.total, network.shapes[number]), self.condition)
            turned = network.rotation(number, x)
            for layer, block in enumerate(network.blocks):
                x = block(x, (turned, turned), cache=self.cache, layer=layer, condition=self.condition)
            self.cache.length += network.sizes[number]
            self.logits = network.read(number, x)
        return self.logits

    @torch.no_grad()
    def append(self, codes: Tensor) -> None:
        """Append the codes (b, m) of the next grid, or of several."""
        while codes.shape[1]:
            size, shape = self.network.sizes[self.number], self.network.shapes[self.number]
            of_grid, codes = codes[:, :size].unflatten(1, shape), codes[:, size:]
            if self.number + 1 < len(self.order):
                self.next_logits()  # of a known grid, too: finer ones see its keys and values
                self.total = self.scales.add(self.total, of_grid, self.number)
            self.number, self.logits = self.number + 1, None


def whole_grids(sizes: Sequence[int]) -> list[tuple[int, range]]:
    """Return the order of steps that draw a whole grid each, for the numbers of the grids' sites."""
    return [(grid, range(sites)) for grid, sites in enumerate(sizes)]
