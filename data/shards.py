"""The tensors of a shard of codes: packed, checked and mapped.

A shard of m images holds

- `codes.0`, `codes.1`, ... (m·v, *shape), one for each grid, in the smallest unsigned type that holds its K;
- `columns.NAME` (m, *shape) int64 or float32;
- for a column of texts, `columns.NAME.bytes`, all texts in UTF-8, one after the other, and `columns.NAME.offsets`
  (m·product of shape + 1,) int64, where each begins.

Shapes: m images of a shard, v views, *shape the sites of a grid or the shape of a column, K num_embeddings.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codegrid.budget import check_not_hollow
from codegrid.codes import Codes
from codegrid.errors import InputError
from codegrid.files import open_plain
from codegrid.limits import short
from codegrid.strict_json import parse_json
from codegrid.tensors import sha256

from .manifest import LABELS, CodeHeader

MAX_SHARD_HEADER = 2**26  # bytes
NUMPY_TYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "I64": np.int64, "F32": np.float32}
COLUMN_TYPES = {"int": np.int64, "float": np.float32}

Column = torch.Tensor | list  # (m, *shape) int64 or float32; or texts, in lists of the column's shape
Arrays = dict[str, np.ndarray]


def smallest_dtype(num_embeddings: int) -> np.dtype:
    """Return the smallest unsigned type that holds the codes 0 ... K-1."""
    return np.min_scalar_type(num_embeddings - 1)


def pack_shard(codes: Codes, columns: dict[str, Column], num_images: int, header: CodeHeader) -> Arrays:
    """Return the arrays of a shard by name.

    Args:
        codes: (m·v, *shape) of each grid.
        columns: (m, *shape) by name.
        num_images: m.

    Raises `InputError` if they do not match the header, or are not of `num_images` images.
    """
    if len(codes) != len(header.grids) or columns.keys() != header.columns.keys():
        raise InputError(
            f"a shard of {len(codes)} grids and columns {list(columns)}, but the header has {len(header.grids)} and "
            f"{list(header.columns)}"
        )
    arrays: Arrays = {}
    for number, (part, grid) in enumerate(zip(codes, header.layout, strict=True)):
        values = part.cpu().numpy()
        outside = values[(values < 0) | (values >= grid.num_embeddings)]  # before the cast, which would wrap them
        if outside.size:
            raise InputError(f"code {outside[0]} of grid {number}: codes must be from 0 to {grid.num_embeddings - 1}")
        arrays[f"codes.{number}"] = values.astype(smallest_dtype(grid.num_embeddings))
    for name, column in header.columns.items():
        arrays |= _pack_column(name, column, columns[name])
    fault = fault_of(arrays, num_images, header)
    if fault:
        raise InputError(f"a shard {fault}")
    return arrays


def _pack_column(name: str, column: dict[str, Any], values: Column) -> Arrays:
    key = f"columns.{name}"
    if column["kind"] == "text":
        texts = np.array(values, dtype=object)
        if texts.shape[1:] != tuple(column["shape"]) or not all(isinstance(text, str) for text in texts.flat):
            raise InputError(f"column {name} {short(values)}: it must be texts of shape {column['shape']}")
        encoded = [text.encode(errors="replace") for text in texts.flat]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return {f"{key}.offsets": offsets, f"{key}.bytes": np.frombuffer(bytearray(b"".join(encoded)), dtype=np.uint8)}
    numbers = np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values)
    if numbers.dtype.kind not in ("iu" if column["kind"] == "int" else "iuf"):
        raise InputError(f"column {name} {short(values)}: it must be of kind {column['kind']}")
    return {key: numbers.astype(COLUMN_TYPES[column["kind"]])}


def fault_of(arrays: Arrays, num_images: int, header: CodeHeader) -> str:
    """Return why the arrays of a shard are not of `num_images` images as in the header; empty if they are."""
    for number, grid in enumerate(header.layout):
        codes, last = arrays.get(f"codes.{number}"), grid.num_embeddings - 1
        if codes is None or codes.shape != (num_images * header.views, *grid.shape):
            return f"does not match the manifest (codes.{number})"
        if codes.dtype != smallest_dtype(grid.num_embeddings) or codes.max() > last:
            return f"holds {codes.dtype} numbers that are not codes from 0 to {last} (codes.{number})"
    for name, column in header.columns.items():
        fault = _column_fault(arrays, f"columns.{name}", column, num_images)
        if fault:
            return f"{fault} (column {name})"
    labels = arrays.get(f"columns.{LABELS}")
    if labels is not None and not 0 <= labels.min() <= labels.max() < len(header.classes):
        return f"holds the labels {labels.min()} to {labels.max()}, of {len(header.classes)} classes"
    return ""


def _column_fault(arrays: Arrays, key: str, column: dict[str, Any], num_images: int) -> str:
    missing = "does not match the manifest"
    if column["kind"] != "text":
        numbers, dtype = arrays.get(key), COLUMN_TYPES[column["kind"]]
        sound = numbers is not None and numbers.shape == (num_images, *column["shape"]) and numbers.dtype == dtype
        return "" if sound else missing
    content, offsets = arrays.get(f"{key}.bytes"), arrays.get(f"{key}.offsets")
    if content is None or offsets is None or content.ndim != 1 or content.dtype != np.uint8:
        return missing
    if offsets.shape != (num_images * math.prod(column["shape"]) + 1,) or offsets.dtype != np.int64:
        return missing
    if offsets[0] != 0 or offsets[-1] != len(content) or (offsets[1:] < offsets[:-1]).any():
        return "holds texts that are outside of their bytes"
    try:
        content.tobytes().decode()
        is_cut = (content[offsets[offsets < len(content)]] & 0xC0 == 0x80).any()  # begins inside a character
    except UnicodeDecodeError:
        is_cut = True
    return "holds texts that are not UTF-8" if is_cut else ""


def column_of(arrays: Arrays, name: str, column: dict[str, Any], images: np.ndarray) -> np.ndarray:
    """Return a column of some images (b, *shape) in a shard; texts as objects."""
    if column["kind"] != "text":
        return arrays[f"columns.{name}"][images]
    offsets, content = arrays[f"columns.{name}.offsets"], arrays[f"columns.{name}.bytes"]
    count = math.prod(column["shape"])
    places = (images[:, None] * count + np.arange(count)).ravel()
    texts = [content[offsets[i] : offsets[i + 1]].tobytes().decode() for i in places]
    return np.array(texts, dtype=object).reshape(len(images), *column["shape"])


def read_shard(
    path: Path, num_images: int, expected_sha256: str, header: CodeHeader, into_memory: bool = False
) -> Arrays:
    """Memory-map a shard, or read it into memory, and check its bytes, shapes and codes.

    Raises `InputError` if a check fails.
    """
    if into_memory:
        with open_plain(path) as file:
            content = np.frombuffer(file.read(), dtype=np.uint8)
    else:
        content = _map_bytes(path)
    if sha256(content) != expected_sha256:
        raise InputError(f"{path} is damaged (its SHA-256 is not the recorded one): export the codes again")
    arrays = _parse(path, content)[1]
    fault = fault_of(arrays, num_images, header)
    if fault:
        raise InputError(f"{path} {fault}: export the codes again")
    return arrays


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a shard, which is not checked."""
    return _parse(path, _map_bytes(path))[0]


def _map_bytes(path: Path) -> np.ndarray:
    if not path.stat().st_size:
        raise InputError(f"{path} is damaged (it is empty): export the codes again")
    check_not_hollow(path)
    return np.memmap(path, dtype=np.uint8, mode="r")


def _parse(path: Path, content: np.ndarray) -> tuple[dict[str, str], Arrays]:
    """Parse the bytes of a safetensors file (8 of length, a JSON header, the data) into metadata and arrays, as views.

    The library's own reader would copy the arrays into memory.
    """
    try:
        length = int.from_bytes(content[:8].tobytes(), "little")
        if length > min(len(content) - 8, MAX_SHARD_HEADER):
            raise ValueError("the header is longer than the file")
        data = content[8 + length :]
        entries = parse_json(content[8 : 8 + length].tobytes())
        metadata = entries.pop("__metadata__", {})
        arrays = {}
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= len(data):
                raise ValueError(f"{name} is outside of the file")
            arrays[name] = data[begin:end].view(NUMPY_TYPES[entry["dtype"]]).reshape(entry["shape"])
        return metadata, arrays
    except OSError:
        raise
    except Exception as error:  # an untrusted header can be wrong in any way
        raise InputError(f"{path} is not a shard of codes: export the codes again") from error
