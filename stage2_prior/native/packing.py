"""Packing of a gated PixelCNN's weights in the order in which the native library reads them.

Shapes: c channels, C padded channels (whole panels), K codes of a grid, V lanes of a vector. Products are in panels of
2V outputs, (out / 2V, in, 2V). Where a gate follows, its 2C inputs are in the gates' order: V signals, the V openings
of the same features, and so on; so one panel holds everything that V gates need. s channels of the coarser grids' map.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import structures

if TYPE_CHECKING:
    from codegrid.stage2_prior.pixelcnn.layers import GatedLayer
    from codegrid.stage2_prior.pixelcnn.network import PixelCNNNetwork

MOST_OF_TABLES = 2**24  # bytes: larger ones do not stay in a cache, and products with the codes' vectors are faster

_packed: WeakKeyDictionary[nn.Module, tuple[int, PackedNetwork]] = WeakKeyDictionary()


def pack(network: PixelCNNNetwork, library: ctypes.CDLL) -> PackedNetwork:
    """Return a network's packed weights, cached until a weight changes."""
    digest = _digest(network, library)
    known = _packed.get(network)
    if known is None or known[0] != digest or known[1].library is not library:
        known = _packed[network] = (digest, PackedNetwork(network, library))
    return known[1]


def _digest(network: nn.Module, library: ctypes.CDLL) -> int:
    """Return a digest of all weights: the version counters of tensors miss what is written to `.data`."""
    digest = 0
    for weight in network.parameters():
        in_order = weight.detach().contiguous()
        digest = library.pixelcnn_digest(in_order.data_ptr(), in_order.numel(), digest)
    return digest


class PackedNetwork:
    """Packed weights, and the structure that tells the library where they are."""

    def __init__(self, network: PixelCNNNetwork, library: ctypes.CDLL) -> None:
        self.library = library
        self.lanes = library.pixelcnn_lanes()
        self._held: list[Any] = []  # what the structure points to
        with torch.no_grad():
            self.structure = self._pack(network)

    def in_gates_order(self, x: Tensor) -> Tensor:
        """Rearrange (..., 2c), signals and openings, to (..., 2C) in the gates' order."""
        pairs = self._padded(x.unflatten(-1, (2, -1)))
        return pairs.unflatten(-1, (-1, self.lanes)).transpose(-3, -2).flatten(-3)

    def _pack(self, network: PixelCNNNetwork) -> structures.Network:
        layers, tables = network.gated_layers(), network.tables()
        channels, reach = tables[0].embedding_dim, layers[0].horizontal.kernel_size[1]
        hidden = cast(nn.Conv2d, cast(nn.Sequential, network.heads[0])[1]).out_channels
        taps = (reach * (2 * reach + 1), reach)  # of the first layer: above a site, and left of it
        codes = sum(table.num_embeddings for table in tables)
        by_table = 4 * codes * sum(taps) * 2 * self._size(channels) <= MOST_OF_TABLES
        grids = [self._grid(network, number, taps if by_table else ()) for number in range(len(tables))]
        packed = structures.Network(
            len(layers), channels, self._size(channels), reach, layers[-1].horizontal.kernel_size[1] - 1, hidden,
            self._size(hidden), len(tables), layers[0].map_channels,
            self._array([self._layer(layer) for layer in layers]), self._array(grids), self._conditions(layers),
        )  # fmt: skip
        if by_table:
            self.library.pixelcnn_fill_tables(packed)
        return packed

    def _layer(self, layer: GatedLayer) -> structures.Layer:
        order = self.in_gates_order
        vertical = order(layer.vertical.weight.permute(2, 3, 1, 0).flatten(0, 2))
        onward = order(order(layer.vertical_to_horizontal.weight[:, :, 0, 0]).T)
        horizontal = order(layer.horizontal.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1))
        constant = order(_bias(layer.vertical_to_horizontal) + _bias(layer.horizontal))
        return structures.Layer(
            self._panels(vertical), self._hold(order(_bias(layer.vertical))), self._panels(onward),
            self._hold(constant), self._panels(horizontal), *self._product(layer.horizontal_out),
            *self._map(layer),
        )  # fmt: skip

    def _map(self, layer: GatedLayer) -> tuple[int | None, ...]:
        if layer.of_map is None:
            return None, None
        halves = layer.of_map.weight[:, :, 0, 0].T.chunk(2, dim=1)  # (s, 2c) of each gate
        return tuple(self._panels(self.in_gates_order(half)) for half in halves)

    def _grid(self, network: PixelCNNNetwork, number: int, taps: Sequence[int]) -> structures.Grid:
        weight = network.tables()[number].weight
        _, hidden, _, logits = cast("list[nn.Conv2d]", list(cast(nn.Sequential, network.heads[number])))
        codes, channels = weight.shape
        tables = [self._hold(weight.new_empty(places, codes, 2 * self._size(channels))) for places in taps]
        within = None
        if number < len(network.within_site):
            within = self._hold(self._padded(cast(nn.Embedding, network.within_site[number]).weight))
        return structures.Grid(
            codes, self._size(codes), self._hold(self._padded(weight)), *(tables or (None, None)), within,
            *self._product(hidden), *self._product(logits, -torch.inf),
        )  # fmt: skip

    def _conditions(self, layers: list[GatedLayer]) -> int | None:
        tables = [layer.condition.weight for layer in layers if layer.condition is not None]
        if not tables:
            return None
        return self._hold(self.in_gates_order(torch.stack(tables, 1).unflatten(2, (2, -1))))

    def _product(self, layer: nn.Conv2d, padding: float = 0.0) -> tuple[int, int]:
        """Pack the product and the bias of a layer that sees only its own site."""
        weight = self._padded(layer.weight[:, :, 0, 0].T)
        return self._panels(weight), self._hold(self._padded(_bias(layer), padding))

    def _size(self, numbers: int) -> int:
        return numbers + -numbers % (2 * self.lanes)

    def _padded(self, x: Tensor, value: float = 0.0) -> Tensor:
        return F.pad(x, (0, -x.shape[-1] % (2 * self.lanes)), value=value)

    def _panels(self, weight: Tensor) -> int:
        return self._hold(weight.unflatten(1, (-1, 2 * self.lanes)).transpose(0, 1))

    def _hold(self, tensor: Tensor) -> int:
        tensor = tensor.detach().contiguous()
        self._held.append(tensor)
        return tensor.data_ptr()

    def _array(self, items: list[Any]) -> ctypes.c_void_p:
        array = (type(items[0]) * len(items))(*items)
        self._held.append(array)
        return ctypes.cast(array, ctypes.c_void_p)


def _bias(layer: nn.Conv2d) -> Tensor:
    return cast(Tensor, layer.bias)  # every layer here has one
