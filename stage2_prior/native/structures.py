"""Structures and functions of `pixelcnn.cpp`, field by field.

Shapes: see that file.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, ClassVar

from codegrid.native.build import Library

Fields = list[tuple[str, Any]]


def _numbers(*names: str) -> Fields:
    return [(name, ctypes.c_int64) for name in names]


def _pointers(*names: str) -> Fields:
    return [(name, ctypes.c_void_p) for name in names]


class Layer(ctypes.Structure):
    """The packed weights of a layer."""

    _fields_: ClassVar[Fields] = _pointers(
        "vertical", "vertical_bias", "onward", "constant", "horizontal", "out", "out_bias", "map_above", "map_left"
    )


class Grid(ctypes.Structure):
    """The packed weights of a grid: its embedding and its head."""

    _fields_: ClassVar[Fields] = [
        *_numbers("count", "padded"),
        *_pointers("embedding", "above", "left", "within", "hidden", "hidden_bias", "logits", "logits_bias"),
    ]


class Network(ctypes.Structure):
    """A packed network."""

    _fields_: ClassVar[Fields] = [
        *_numbers(
            "num_layers", "channels", "padded", "first_reach", "reach", "hidden", "padded_hidden", "num_grids",
            "map_channels"
        ),
        *_pointers("layers", "grids", "conditions"),
    ]  # fmt: skip


class Controls(ctypes.Structure):
    """Settings of how codes are drawn."""

    _fields_: ClassVar[Fields] = [
        *((name, ctypes.c_double) for name in ("temperature", "top_p", "guidance_scale")),
        *_numbers("top_k", "guided"),
    ]


class Task(ctypes.Structure):
    """Tensors of all samples that are drawn together."""

    _fields_: ClassVar[Fields] = [
        *_numbers("height", "width", "num_samples", "num_rows"),
        *_pointers("codes", "known", "uniforms", "conditions", "site_map", "logits"),
        ("controls", Controls),
    ]


class Block(ctypes.Structure):
    """The samples of one thread."""

    _fields_: ClassVar[Fields] = [*_numbers("num_rows", "num_drawn"), *_pointers("rows", "memory")]


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the types of the library's functions to ctypes."""
    number, network, task, block = ctypes.c_int64, *map(ctypes.POINTER, (Network, Task, Block))
    for name, result, arguments in (
        ("lanes", number, []),
        ("floats", number, [network, task, block]),
        ("fill_tables", None, [network]),
        ("run", None, [network, task, block, number, number, number]),
        ("digest", ctypes.c_uint64, [ctypes.c_void_p, number, ctypes.c_uint64]),
    ):
        function = getattr(library, f"pixelcnn_{name}")
        function.restype, function.argtypes = result, arguments
    return library


PIXELCNN = Library(Path(__file__).with_name("pixelcnn.cpp"), declare)
# the same bits on every processor: vectors of one width, and no multiplications and additions in one, which some lack
SAME_BITS = PIXELCNN._replace(flags=("-DSAME_BITS", "-ffp-contract=off"))
