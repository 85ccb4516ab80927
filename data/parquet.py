"""Codes as a Parquet file that Hugging Face `datasets` reads with their shape and the names of the classes.

The columns are `codes`, or `codes.0`, `codes.1`, ... for several grids: nested lists of codes. Labels are in the column
`label`, all other columns have their own names. In the schema, `datasets` finds `Array2D` and `ClassLabel`, other
readers find lists and numbers, and Codegrid finds the header of the code dataset.

Shapes: n rows, *shape the sites of a grid or the shape of a column, K num_embeddings.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from codegrid.budget import check_memory, check_not_hollow
from codegrid.errors import InputError, import_extra, reason_of
from codegrid.strict_json import parse_json, to_json

from .codes import CodeBatch
from .manifest import CAPTIONS, FILES, LABELS, CodeHeader, parse_header
from .npz import code_names
from .shards import COLUMN_TYPES, smallest_dtype

GROUP_CODES = 2**22  # in a row group, about: it is written and read at once
COMPRESSION = "zstd"
COPIES, LEVELS = 2, 4  # copies of each number while it is read, and bytes for its nesting levels
STRINGS = ("string", "large_string")  # names of types


def write_parquet(path: Path, header: CodeHeader, shards: Iterable[CodeBatch]) -> None:
    """Write the codes of the shards as they arrive, in the smallest type that holds K, and the columns."""
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
    """Return the schema of the columns, with metadata for `datasets` and for Codegrid."""
    kinds = [
        *((grid.shape, str(smallest_dtype(grid.num_embeddings))) for grid in header.layout),
        *((column["shape"], {"float": "float32", "int": "int64", "text": "string"}[column["kind"]])
          for column in header.columns.values()),
    ]  # fmt: skip
    names = [*code_names(len(header.grids)), *("label" if name == LABELS else name for name in header.columns)]
    fields, features = [], {}
    for name, (shape, dtype) in zip(names, kinds, strict=True):
        kind: Any = pa.type_for_alias(dtype)
        feature: dict[str, Any] = {"dtype": dtype, "_type": "Value"}
        for _ in shape:
            kind, feature = pa.list_(kind), {"feature": feature, "_type": "List"}
        marks = None
        if 2 <= len(shape) <= 5 and dtype != "string":  # marks an Arrow extension type; others see lists
            marks = {
                "ARROW:extension:name": f"datasets.features.features.Array{len(shape)}DExtensionType",
                "ARROW:extension:metadata": to_json([list(shape), dtype]),
            }
            feature = {"shape": list(shape), "dtype": dtype, "_type": f"Array{len(shape)}D"}
        features[name] = feature
        fields.append(pa.field(name, kind, metadata=marks))
    if len(set(header.classes)) == len(header.classes) > 0:  # a ClassLabel needs distinct names
        features["label"] = {"names": header.classes, "_type": "ClassLabel"}
    metadata = {"huggingface": to_json({"info": {"features": features}}), "codegrid": to_json(asdict(header))}
    return pa.schema(fields, metadata=metadata)


def _nest(pa: Any, values: np.ndarray, shape: Sequence[int]) -> Any:
    """Turn (n, *shape) into an Arrow array of n nested lists of values."""
    nested = pa.array(values.ravel())
    for axis in reversed(range(len(shape))):
        count = len(values) * math.prod(shape[:axis])
        nested = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * shape[axis], nested)
    return nested


def read_parquet(path: Path) -> tuple[dict[str, np.ndarray], CodeHeader | None]:
    """Return the arrays `codes`, or `codes.0` ..., (n, *shape), and the header.

    There may also be `labels` and `files` (n,), and `captions` (n, k). The header is that of the code dataset, None for
    files of other programs. Raises `InputError` if the file cannot be read.
    """
    pq = import_extra("pyarrow.parquet", path.name, "hub")
    check_not_hollow(path)
    try:
        texts = [field.name for field in pq.read_schema(path) if field.name == FILES and str(field.type) in STRINGS]
        with pq.ParquetFile(path, read_dictionary=texts) as file:  # a long name that repeats is stored once
            return _read(path, file)
    except InputError:
        raise
    except Exception as error:  # damaged files raise many types of errors
        reason = reason_of(error)
        raise InputError(f"{path} is not a readable Parquet file of codes ({reason}): export them again") from error


def _read(path: Path, file: Any) -> tuple[dict[str, np.ndarray], CodeHeader | None]:
    names = file.schema_arrow.names
    of_codes = [name for name in names if name == "codes" or name.startswith("codes.")]
    label = [name for name in ("label", "labels") if name in names][:1]
    files = [FILES] if FILES in names and "dictionary<" in str(file.schema_arrow.field(FILES).type) else []
    if not of_codes or not file.metadata.num_rows:
        raise InputError(f"{path}: a column `codes` of grids is needed, and at least one grid")
    needed = sum(_bytes_of(path, file, name) for name in (*of_codes, *label))
    captions = [CAPTIONS] if CAPTIONS in names and _holds_texts(file.schema_arrow.field(CAPTIONS).type) else []
    texts = [column for name in (*files, *captions) for column in _columns(file, name)]
    needed += sum(column.total_uncompressed_size for column in texts)
    check_memory(f"the codes of {path}", needed, "cut it into several files")
    found: dict[str, list[np.ndarray]] = {name: [] for name in [*of_codes, *label, *files, *captions]}
    for group in range(file.metadata.num_row_groups):
        table = file.read_row_group(group, columns=list(found))
        for name, arrays in found.items():
            read = _names if name in files else _texts if name in captions else _unnest
            arrays += [read(path, name, chunk) for chunk in table[name].chunks if len(chunk)]
    if any(len({array.shape[1:] for array in arrays}) > 1 for arrays in found.values()):
        raise InputError(f"{path}: its grids are not all of the same size: export the codes again")
    joined = {LABELS if name in label else name: np.concatenate(arrays) for name, arrays in found.items()}
    return joined, _header(path, file.schema_arrow.metadata or {})


def _bytes_of(path: Path, file: Any, name: str) -> int:
    """Return the bytes that reading a column takes; refuse anything but nested lists of whole numbers."""
    import pyarrow as pa

    kind = file.schema_arrow.field(name).type
    kind = getattr(kind, "storage_type", kind)  # once `datasets` is imported, lists have a type of its own
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if not pa.types.is_integer(kind):
        raise InputError(f"{path}: `{name}` holds {str(kind)[:60]}: codes and labels must be whole numbers")
    values = sum(column.num_values for column in _columns(file, name))
    return values * (COPIES * kind.bit_width // 8 + LEVELS)


def _columns(file: Any, name: str) -> list[Any]:
    """Return the metadata of a column in each row group of the file."""
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    return [column for column in columns if f"{column.path_in_schema}.".startswith(f"{name}.")]


def _names(path: Path, name: str, chunk: Any) -> np.ndarray:
    """Turn an Arrow array of n texts into (n,) str."""
    if chunk.null_count:
        raise InputError(f"{path}: `{name}` must be names of files, none of them missing")
    texts = chunk.dictionary.to_pylist()
    return np.array(texts, dtype=object)[chunk.indices.to_numpy()]


def _holds_texts(kind: Any) -> bool:
    return str(getattr(kind, "value_type", kind)) in STRINGS


def _texts(path: Path, name: str, chunk: Any) -> np.ndarray:
    """Turn an Arrow array of n texts, or lists of as many texts each, into (n, k) str."""
    rows = [value if isinstance(value, list) else [value] for value in chunk.to_pylist()]
    if len(set(map(len, rows))) != 1 or not all(isinstance(text, str) for row in rows for text in row):
        raise InputError(f"{path}: `{name}` must be texts, as many for each grid, none of them missing")
    return np.array(rows, dtype=object)


def _unnest(path: Path, name: str, chunk: Any) -> np.ndarray:
    """Turn an Arrow array of n nested lists of whole numbers into (n, *shape)."""
    shape = [len(chunk)]
    while hasattr(values := getattr(chunk, "storage", chunk), "value_lengths"):  # once `datasets` is
        lengths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False))  # imported, it has its own type
        if values.null_count or len(lengths) != 1:
            raise InputError(f"{path}: `{name}` must hold lists of rows of the same size: export the codes again")
        shape.append(int(lengths[0]))
        chunk = values.flatten()
    numbers = chunk.to_numpy(zero_copy_only=False)
    if chunk.null_count or numbers.dtype.kind not in "iu":
        raise InputError(f"{path}: codes and labels must be whole numbers, none of them missing")
    return numbers.reshape(shape)


def _header(path: Path, metadata: dict[bytes, bytes]) -> CodeHeader | None:
    header = parse_json(metadata.get(b"codegrid", b"null"))
    if header is None:
        return None
    try:
        return parse_header(header)
    except InputError as error:
        raise InputError(f"{path}: {error}; export the codes again") from error
