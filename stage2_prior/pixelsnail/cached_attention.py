"""Cached attention of PixelSNAIL: the keys and values of earlier sites are kept, and grow linearly in the sites.

Shapes: b batch, c channels, n sites, B blocks, a num_heads · head_channels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from codegrid.budget import check_memory

from .weights import transposed

if TYPE_CHECKING:
    from .network import PixelSNAILNetwork

elu_into = torch.ops.aten.elu.out  # `F.elu` cannot write into a tensor


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
        self.for_known = torch.cat([transposed(layer.from_codes)[0] for layer in layers], dim=1)  # (c, B·2a)
        self.from_features, constants = [], []
        for block, layer in enumerate(layers):
            weight, bias = transposed(layer.from_features)
            from_position = place @ transposed(layer.from_position)[0]
            constant = bias + F.pad(from_position, (0, len(bias) - 3 * self.wide))
            for part in (weight, constant):
                part[:, : self.wide] /= math.sqrt(per_head)  # as scaled dot product attention does
            self.from_features.append(weight)
            constants.append(constant.unbind(0))
            key, value = layer.start.detach().view(2, self.heads, per_head).repeat(1, batch_size, 1)
            self.keys[block, :, :, 0], self.values[block, :, 0] = key, value
        self.constants = constants
        self.from_attended = [transposed(layer.from_attended)[0] for layer in layers]
        # query, key, value and gates at a site
        self.made = place.new_empty(self.num_blocks, batch_size, self.from_features[0].shape[1])
        self.activated = place.new_empty(batch_size, self.from_features[0].shape[0])
        by_head = self.num_blocks, batch_size, self.heads, per_head
        known_at = self.made[:, :, self.wide : 3 * self.wide].unflatten(2, (2, *by_head[2:]))
        self.key_at, self.value_at = known_at.permute(2, 0, 1, 3, 4).unbind(0)
        self.keys_by_head = self.keys.view(*by_head, num_sites)
        self.values_by_head = self.values.view(*by_head[:3], num_sites, per_head)
        self.views = []
        for made in self.made:
            gates = made[:, 3 * self.wide :]
            self.views.append((made, made[:, : self.wide], gates, *gates.chunk(2, dim=1)))
        self.keys_of, self.values_of = self.keys.unbind(0), self.values.unbind(0)

    def attend(self, block: int, site: int, x: Tensor) -> None:
        """Add to the features x (b, c) of a site what it finds at earlier ones."""
        made, query, gates, values, gate = self.views[block]
        elu_into(x, out=self.activated)
        torch.addmm(self.constants[block][site], self.activated, self.from_features[block], out=made)
        queries = query.reshape(len(query) * self.heads, 1, -1)
        weights = torch.bmm(queries, self.keys_of[block].narrow(2, 0, site + 1)).softmax(2)
        attended = torch.bmm(weights, self.values_of[block].narrow(1, 0, site + 1)).view(len(query), self.wide)
        gates.addmm_(attended, self.from_attended[block])
        x.addcmul_(values, gate.sigmoid_())

    def take_in(self, site: int, from_codes: Tensor) -> None:
        """Keep the keys and values of a site, given what its codes add to them (b, B·2a)."""
        added = from_codes.unflatten(1, (self.num_blocks, 2, self.heads, -1)).permute(2, 1, 0, 3, 4)
        key, value = added.unbind(0)
        torch.add(self.key_at, key, out=self.keys_by_head.select(4, site + 1))
        torch.add(self.value_at, value, out=self.values_by_head.select(3, site + 1))
