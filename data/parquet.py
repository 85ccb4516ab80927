"""Codes as a Parquet file that Hugging Face `datasets` reads with their shape and the names of the classes.

The columns are `codes`, a list of rows of codes for each grid, and `label` where there are labels. The schema says
`Array2D` and `ClassLabel` to `datasets`, to others that these are lists and numbers, and the header of the code dataset
to us.

Shapes: n grids, h w code grid, K num_embeddings.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from codegrid.errors import InputError, reason_of
from codegrid.extras import import_extra
from codegrid.limits import machine_memory

from .codes import CodeHeader, CodeShard, smallest_dtype

GROUP_CODES = 2**22  # about so many codes in a row group: what is written, and read, at once
COMPRESSION = "zstd"


def write_parquet(path: Path, header: CodeHeader, shards: Iterable[CodeShard]) -> int:
    """Write the codes of the shards as they come, in the smallest type that holds K; returns their ties."""
    pa, pq = import_extra("pyarrow", "--format parquet"), import_extra("pyarrow.parquet", "--format parquet")
    grid, ties = header.grids[0], 0
    schema, dtype = _schema(pa, header), smallest_dtype(grid["num_embeddings"])
    rows = max(1, GROUP_CODES // (grid["height"] * grid["width"]))
    with pq.ParquetWriter(path, schema, compression=COMPRESSION) as writer:
        for shard in shards:
            for first in range(0, len(shard.codes), rows):
                columns = [_lists(pa, shard.codes[first : first + rows].numpy().astype(dtype))]
                if header.classes:
                    columns.append(pa.array(shard.labels[first : first + rows].numpy()))
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            ties += shard.ties
    return ties


def _schema(pa: Any, header: CodeHeader) -> Any:
    grid = header.grids[0]
    dtype = smallest_dtype(grid["num_embeddings"])
    shape = [grid["height"], grid["width"]]
    # Arrow's mark of an extension type: who does not know it sees the lists
    array = {
        "ARROW:extension:name": "datasets.features.features.Array2DExtensionType",
        "ARROW:extension:metadata": json.dumps([shape, str(dtype)]),
    }
    fields = [pa.field("codes", pa.list_(pa.list_(pa.from_numpy_dtype(dtype))), metadata=array)]
    features: dict[str, dict] = {"codes": {"shape": shape, "dtype": str(dtype), "_type": "Array2D"}}
    if header.classes:
        fields.append(pa.field("label", pa.int64()))
        unique = len(set(header.classes)) == len(header.classes)  # others are no ClassLabel
        named, plain = {"names": header.classes, "_type": "ClassLabel"}, {"dtype": "int64", "_type": "Value"}
        features["label"] = named if unique else plain
    metadata = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "codegrid": json.dumps(asdict(header)),
    }
    return pa.schema(fields, metadata=metadata)


def _lists(pa: Any, codes: np.ndarray) -> Any:
    """(n, h, w) → an array of n lists of h lists of w codes."""
    count, height, width = codes.shape
    rows = pa.ListArray.from_arrays(np.arange(count * height + 1, dtype=np.int32) * width, pa.array(codes.ravel()))
    return pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * height, rows)


def read_parquet(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    """The arrays `codes` (n, h, w) and, if there are any, `labels` (n,); and the fingerprint of their tokenizer.

    The fingerprint is None in files of other programs. Raises `InputError` where the file cannot be read.
    """
    pq = import_extra("pyarrow.parquet", path.name)
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


def _read(path: Path, file: Any) -> tuple[dict[str, np.ndarray], str | None]:
    names = file.schema_arrow.names
    label = next((name for name in ("label", "labels") if name in names), None)
    if "codes" not in names or not file.metadata.num_rows:
        raise InputError(f"{path}: a column `codes` of grids is needed, and at least one grid")
    groups = range(file.metadata.num_row_groups)
    size = sum(_num_values(file.metadata.row_group(group), "codes") for group in groups) * 8
    if size > machine_memory():  # equal codes are packed a thousand to one: a small file can fill any machine
        memory = f"this machine has {machine_memory():,}"
        raise InputError(f"{path} holds {size:,} bytes of codes, but {memory}: cut it into several files")
    codes, labels = [], []
    for group in groups:
        table = file.read_row_group(group, columns=["codes", *([label] if label else [])])
        codes += [_grids(path, chunk) for chunk in table["codes"].chunks if len(chunk)]
        labels += [_numbers(path, chunk) for chunk in table[label].chunks] if label else []
    if len({grids.shape[1:] for grids in codes}) > 1:
        raise InputError(f"{path}: its grids are not all of one size: export the codes again")
    arrays = {"codes": np.concatenate(codes), **({"labels": np.concatenate(labels)} if label else {})}
    return arrays, _fingerprint(file.schema_arrow.metadata or {})


def _num_values(group: Any, name: str) -> int:
    columns = [group.column(number) for number in range(group.num_columns)]
    return sum(column.num_values for column in columns if column.path_in_schema.partition(".")[0] == name)


def _grids(path: Path, chunk: Any) -> np.ndarray:
    """An array of lists of lists → (n, h, w)."""
    shape = [len(chunk)]
    for _ in range(2):
        values = getattr(chunk, "storage", chunk)  # `datasets`, once it is imported, makes an own type of it
        lengths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False))
        if values.null_count or len(lengths) != 1:
            raise InputError(f"{path}: `codes` must hold lists of rows, of one size: export the codes again")
        shape.append(int(lengths[0]))
        chunk = values.flatten()
    return _numbers(path, chunk).reshape(shape)


def _numbers(path: Path, chunk: Any) -> np.ndarray:
    numbers = chunk.to_numpy(zero_copy_only=False)
    if chunk.null_count or numbers.dtype.kind not in "iu":
        raise InputError(f"{path}: codes and labels must be whole numbers, none of them missing")
    return numbers


def _fingerprint(metadata: dict[bytes, bytes]) -> str | None:
    header = json.loads(metadata.get(b"codegrid", b"{}"))
    fingerprint = header.get("tokenizer_fingerprint") if isinstance(header, dict) else None
    return fingerprint if isinstance(fingerprint, str) else None
