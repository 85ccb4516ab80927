"""Cached steps of the causal transformer: the keys and values of a text and of all earlier positions are kept.

Shapes: b batch, d channels, m new positions, t words of a text, K num_embeddings of a grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from codegrid.stage2_prior.sampling.sequential import site_by_site

from .compiled import compiled_position
from .layers import KeyValueCache

if TYPE_CHECKING:
    from codegrid.stage2_prior.coarser import Conditioning

    from .network import TransformerNetwork


class TransformerSteps:
    """Steps of one code each: call `next_logits()`, then `append` the codes that were drawn.

    Codes that are appended wait until logits are asked for, and then pass through the layers together.
    """

    @torch.no_grad()
    def __init__(
        self, network: TransformerNetwork, batch_size: int, given: Conditioning, compiled: bool = False
    ) -> None:
        self.network, self.order, self.compiled = network, site_by_site(network.layout), compiled
        waiting = network.first(given.rows, batch_size)
        self.at_sites, self.turned = network.at_sites(given), network.rotations(waiting)
        heads = waiting.shape[2] // network.head_width
        self.words = given.words  # until they are in the cache
        self.ahead = 0 if given.words is None else given.words.hidden.shape[1]  # positions in front of the codes: t
        sizes = self.ahead + len(self.order), network.cached_width
        self.cache = KeyValueCache(len(network.blocks), batch_size, heads, *sizes, like=waiting)
        self.waiting = [waiting]  # features (b, m, d) of positions, without those of their sites
        self.taken = 0  # codes that were appended
        self.logits: Tensor | None = None

    @torch.no_grad()
    def next_logits(self) -> Tensor:
        """Return the logits (b, 1, K) of the next code."""
        if self.logits is None:
            features = self._take_in(torch.cat(self.waiting, dim=1))
            self.waiting.clear()
            grid, _ = self.order[self.taken]
            self.logits = self.network.heads[grid](features[:, -1:])
        return self.logits

    @torch.no_grad()
    def append(self, codes: Tensor) -> None:
        """Append the codes (b, 1) whose logits were returned last, or known ones (b, m) of several steps."""
        grids = [grid for grid, _ in self.order[self.taken : self.taken + codes.shape[1]]]
        tables = self.network.embeddings
        self.waiting += [tables[grid](column)[:, None] for grid, column in zip(grids, codes.unbind(1), strict=True)]
        self.taken, self.logits = self.taken + len(grids), None

    def _take_in(self, x: Tensor) -> Tensor:
        """Pass new positions (b, m, d) through all layers."""
        first = max(0, self.cache.length - self.ahead)
        here = slice(first, first + x.shape[1])
        turned = self.turned and (self.turned[0][:, here], self.turned[1][:, here])
        x = x + self.at_sites[:, here]
        if self.compiled and x.shape[1] == 1 and self.words is None:
            place = torch.tensor([self.ahead + first], device=x.device)
            x = compiled_position()(self.network.blocks, x, turned, self.cache.tensor, place)
        else:
            for number, block in enumerate(self.network.blocks):
                x = block(x, turned, causal=True, cache=self.cache, layer=number, words=self.words)
        self.cache.length, self.words = self.ahead + here.stop, None
        return x
