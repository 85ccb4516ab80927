"""Codes as a Parquet file that Hugging Face `datasets` reads with their shape and the names of the classes.

The columns are `codes`, or `codes.0`, `codes.1`, ... of several grids: nested lists of codes. Labels are in the column
`label`, all other columns have their own names. The schema says `Array2D` and `ClassLabel` to `datasets`, to others
that these are lists and numbers, and the header of the code dataset to us.

Shapes: n rows, *shape the sites of a grid or the shape of a column, K num_embeddings.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from codegrid.errors import InputError, import_extra, reason_of
from codegrid.limits import machine_memory

from .code_writer import CodeShard
from .manifest import LABELS, CodeHeader, check_header
from .npz import code_names
from .shards import COLUMN_TYPES, smallest_dtype

GROUP_CODES = 2**22  # about so many codes in a row group: written, and read, at once
COMPRESSION = "zstd"


def write_parquet(path: Path, header: CodeHeader, shards: Iterable[CodeShard]) -> None:
    """Write the codes of the shards as they come, in the smallest type that holds K, and the columns."""
    pa, pq = (import_extra(module, "`format` parquet", "hub") for module in ("pyarrow", "pyarrow.parquet"))
    schema = _schema(pa, header)
    group = max(1, GROUP_CODES // sum(grid.num_sites for grid in header.layout))
    with pq.ParquetWriter(path, schema, compression=COMPRESSION) as writer:
        for shard in shards:
            for first in range(0, len(shard.codes[0]), group):
                rows = slice(first, first + group)
                columns = [
                    _nest(pa, codes[rows].numpy().astype(smallest_dtype(grid.num_embeddings)), grid.shape)
                    for codes, grid in zip(shard.codes, header.layout, strict=True)
                ]
                columns += [
                    _nest(pa, np.array(shard.columns[name][rows], COLUMN_TYPES.get(column["kind"])), column["shape"])
                    for name, column in header.columns.items()
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _schema(pa: Any, header: CodeHeader) -> Any:
    """The columns, with marks that `datasets` and we understand."""
    kinds = [
        *((grid.shape, str(smallest_dtype(grid.num_embeddings))) for grid in header.layout),
        *((column["shape"], {"float": "float32", "int": "int64", "text": "string"}[column["kind"]])
          for column in header.columns.values()),
    ]  # fmt: skip
    names = [*code_names(len(header.grids)), *("label" if name == LABELS else name for name in header.columns)]
    fields, features = [], {}
    for name, (shape, dtype) in zip(names, kinds, strict=True):
        kind = pa.type_for_alias(dtype)
        for _ in shape:
            kind = pa.list_(kind)
        marks = None
        if 2 <= len(shape) <= 5 and dtype != "string":  # Arrow's mark of an extension type; others see the lists
            marks = {
                "ARROW:extension:name": f"datasets.features.features.Array{len(shape)}DExtensionType",
                "ARROW:extension:metadata": json.dumps([list(shape), dtype]),
            }
            features[name] = {"shape": list(shape), "dtype": dtype, "_type": f"Array{len(shape)}D"}
        else:
            features[name] = _listed(shape, dtype)
        fields.append(pa.field(name, kind, metadata=marks))
    if len(set(header.classes)) == len(header.classes) > 0:  # classes of one name are not for a ClassLabel
        features["label"] = {"names": header.classes, "_type": "ClassLabel"}
    metadata = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "codegrid": json.dumps(asdict(header)),
    }
    return pa.schema(fields, metadata=metadata)


def _listed(shape: Sequence[int], dtype: str) -> dict[str, Any]:
    """The feature of `datasets` for lists of lists of values."""
    feature: dict[str, Any] = {"dtype": dtype, "_type": "Value"}
    for _ in shape:
        feature = {"feature": feature, "_type": "List"}
    return feature


def _nest(pa: Any, values: np.ndarray, shape: Sequence[int]) -> Any:
    """(n, *shape) → an array of n lists of ... of values."""
    nested = pa.array(values.ravel())
    for axis in reversed(range(len(shape))):
        count = len(values) * math.prod(shape[:axis])
        nested = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * shape[axis], nested)
    return nested


def read_parquet(path: Path) -> tuple[dict[str, np.ndarray], CodeHeader | None]:
    """Return the arrays `codes`, or `codes.0` ..., (n, *shape), and `labels` (n,); and the header of the code dataset.

    There may be no labels. The header is None in files of other programs. Raises `InputError` where the file
    cannot be read.
    """
    pq = import_extra("pyarrow.parquet", path.name, "hub")
    try:
        with pq.ParquetFile(path) as file:
            return _read(path, file)
    except InputError:
        raise
    except Exception as error:  # what is said of damaged files has many types
        reason = reason_of(error)
        raise InputError(
            f"{path} is not a readable Parquet file of codes ({reason}): export the codes again"
        ) from error


def _read(path: Path, file: Any) -> tuple[dict[str, np.ndarray], CodeHeader | None]:
    names = file.schema_arrow.names
    of_codes = [name for name in names if name == "codes" or name.startswith("codes.")]
    label = [name for name in ("label", "labels") if name in names][:1]
    if not of_codes or not file.metadata.num_rows:
        raise InputError(f"{path}: a column `codes` of grids is needed, and at least one grid")
    groups = range(file.metadata.num_row_groups)
    size = sum(_num_values(file.metadata.row_group(group), name) for group in groups for name in of_codes) * 8
    if size > machine_memory():  # equal codes are packed a thousand to one: a small file can fill any machine
        memory = f"this machine has {machine_memory():,}"
        raise InputError(f"{path} holds {size:,} bytes of codes, but {memory}: cut it into several files")
    found: dict[str, list[np.ndarray]] = {name: [] for name in [*of_codes, *label]}
    for group in groups:
        table = file.read_row_group(group, columns=list(found))
        for name, arrays in found.items():
            arrays += [_unnest(path, name, chunk) for chunk in table[name].chunks if len(chunk)]
    if any(len({array.shape[1:] for array in arrays}) > 1 for arrays in found.values()):
        raise InputError(f"{path}: its grids are not all of one size: export the codes again")
    joined = {LABELS if name in label else name: np.concatenate(arrays) for name, arrays in found.items()}
    return joined, _header(path, file.schema_arrow.metadata or {})


def _num_values(group: Any, name: str) -> int:
    columns = [group.column(number) for number in range(group.num_columns)]
    return sum(
        column.num_values
        for column in columns
        if column.path_in_schema == name or column.path_in_schema.startswith(f"{name}.")
    )


def _unnest(path: Path, name: str, chunk: Any) -> np.ndarray:
    """An array of n lists of ... of whole numbers → (n, *shape)."""
    shape = [len(chunk)]
    while hasattr(values := getattr(chunk, "storage", chunk), "value_lengths"):  # `datasets`, once it is imported,
        lengths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False))  # makes an own type of it
        if values.null_count or len(lengths) != 1:
            raise InputError(f"{path}: `{name}` must hold lists of rows, of one size: export the codes again")
        shape.append(int(lengths[0]))
        chunk = values.flatten()
    numbers = chunk.to_numpy(zero_copy_only=False)
    if chunk.null_count or numbers.dtype.kind not in "iu":
        raise InputError(f"{path}: codes and labels must be whole numbers, none of them missing")
    return numbers.reshape(shape)


def _header(path: Path, metadata: dict[bytes, bytes]) -> CodeHeader | None:
    header = json.loads(metadata.get(b"codegrid", b"null"))
    if header is None:
        return None
    try:
        check_header(header)
    except InputError as error:
        raise InputError(f"{path}: {error}; export the codes again") from error
    return CodeHeader(**header)
