"""Codes to decode: from a code dataset, or as plain arrays from an .npz or a Parquet file.

Shapes: n rows, b batch, *shape the sites of a grid, K num_embeddings.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from codegrid.codes import NO_LABEL, Grid, Layout, describe_layout
from codegrid.errors import InputError
from codegrid.limits import MAX_CLASSES
from codegrid.protocols import Tokenizer
from codegrid.tensors import digest_of, sha256

from .codes import CodeBatch, CodeDataset, IndexedCodes
from .loading import Indices, item_numbers
from .manifest import FILE_COLUMN, FILES, LABELS
from .npz import code_names, read_npz
from .parquet import read_parquet
from .shards import Column

PLAIN = (".npz", ".parquet")
AT_ONCE = 1024  # rows that are read for their names


class CodeArray(IndexedCodes):
    """Codes that came as plain arrays, with the calls of `CodeDataset` that decoding needs.

    Args:
        codes: (n, *shape) whole numbers, for each grid.
        labels: (n,) or None; NO_LABEL where there is none.
        files: (n,) the names of the files that the rows were made of, or None.
    """

    def __init__(
        self, codes: Sequence[np.ndarray], labels: np.ndarray | None = None, files: np.ndarray | None = None
    ) -> None:
        self.codes, self.labels, self.files = tuple(codes), labels, files

    def __len__(self) -> int:
        return len(self.codes[0])

    def batch(self, indices: Indices) -> CodeBatch:
        """Return some rows, in the order of their numbers."""
        chosen = item_numbers(indices, len(self))
        columns: dict[str, Column] = {}
        if self.labels is not None:
            columns[LABELS] = torch.from_numpy(self.labels[chosen].astype(np.int64))
        if self.files is not None:
            columns[FILES] = self.files[chosen].tolist()
        return CodeBatch(tuple(torch.from_numpy(grid[chosen].astype(np.int64)) for grid in self.codes), columns)

    def fingerprint(self) -> str:
        """Return a digest that tells two sets of arrays apart."""
        arrays = [*self.codes, *([] if self.labels is None else [self.labels])]
        parts = [[list(array.shape), str(array.dtype), sha256(np.ascontiguousarray(array))] for array in arrays]
        return digest_of([parts, None if self.files is None else self.files.tolist()])


def open_codes(source: str | Path, tokenizer: Tokenizer) -> CodeDataset | CodeArray:
    """Open codes that this tokenizer can decode.

    Args:
        source: the folder of a code dataset, or an .npz or .parquet file.

    Raises `InputError` where they are another tokenizer's, or not codes of its layout.
    """
    path = Path(source)
    if path.suffix not in PLAIN:
        dataset = CodeDataset(path)
        _check_fingerprint(path, dataset.header.tokenizer_fingerprint, tokenizer)
        if not _fits(dataset.layout, tokenizer.layout):
            raise InputError(
                f"{source} holds {describe_layout(dataset.layout)}, but this tokenizer has "
                f"{describe_layout(tokenizer.layout)}: export the codes again"
            )
        return dataset
    if not path.is_file():
        raise InputError(f"no file {source}: give an .npz or .parquet file of codes, or a folder of exported codes")
    if path.suffix == ".parquet":
        arrays, fingerprint = read_parquet(path)
        if fingerprint is not None:
            _check_fingerprint(path, fingerprint, tokenizer)
    else:
        arrays = read_npz(path)
    return _check_arrays(path, arrays, tokenizer.layout)


def _fits(layout: Layout, decodable: Layout) -> bool:
    """Whether a decoder of one layout can decode codes of the other: it may know more entries than there were."""
    return [grid.shape for grid in layout] == [grid.shape for grid in decodable] and all(
        grid.num_embeddings <= known.num_embeddings for grid, known in zip(layout, decodable, strict=True)
    )


def _check_fingerprint(path: Path, fingerprint: str, tokenizer: Tokenizer) -> None:
    if fingerprint != tokenizer.fingerprint():
        raise InputError(
            f"{path} holds codes of another tokenizer (the fingerprints differ): give the one that made them"
        )


def _check_arrays(path: Path, arrays: dict[str, np.ndarray], layout: Layout) -> CodeArray:
    """Plain arrays, once they are grids that can be decoded, and labels of them."""
    if len(layout) == 1 and "codes" not in arrays and "arr_0" in arrays:  # saved without names
        names_of = {"arr_0": "codes", "arr_1": "labels"}
        arrays = {names_of.get(name, name): array for name, array in arrays.items()}
    names = code_names(len(layout))
    codes = [_check_grids(path, name, arrays.get(name), grid) for name, grid in zip(names, layout, strict=True)]
    count = len(codes[0])
    if any(len(grids) != count for grids in codes):
        raise InputError(f"{path}: {', '.join(names)} must hold as many grids each")
    labels = arrays.get("labels")
    if labels is not None and (labels.shape != (count,) or labels.dtype.kind not in "iu"):
        raise InputError(f"{path}: `labels` must hold one whole number for each of {count} grids")
    if labels is not None and not NO_LABEL <= int(labels.min()) <= int(labels.max()) < MAX_CLASSES:
        outlier = int(labels.min()) if labels.min() < NO_LABEL else int(labels.max())
        raise InputError(f"{path}: label {outlier}: labels must be from 0, or -1 for none, to {MAX_CLASSES - 1}")
    files = arrays.get(FILES)
    if files is not None and (files.shape != (count,) or files.dtype.kind not in "UO"):  # O: of texts, where it is read
        raise InputError(f"{path}: `{FILES}` must hold one name for each of {count} grids")
    return CodeArray(codes, labels, files)


def files_of(codes: CodeDataset | CodeArray, rows: range) -> list[str] | None:
    """Return the names of the files that some rows were made of; None where the codes do not tell."""
    if isinstance(codes, CodeArray):
        return None if codes.files is None else codes.files[rows.start : rows.stop].tolist()
    if codes.header.columns.get(FILES) != FILE_COLUMN:
        return None
    pieces = (codes.batch(rows[first : first + AT_ONCE]).columns[FILES] for first in range(0, len(rows), AT_ONCE))
    return [str(name) for piece in pieces for name in piece]


def _check_grids(path: Path, name: str, codes: np.ndarray | None, grid: Grid) -> np.ndarray:
    """Check the codes of one grid: (n, *shape) whole numbers below K."""
    axes = ", ".join(("t", "hw", "thw")[len(grid.shape) - 1])
    if codes is None or codes.ndim != 1 + len(grid.shape) or codes.dtype.kind not in "iu" or not codes.size:
        raise InputError(f"{path}: `{name}` must be whole numbers of shape (n, {axes}), at least one grid")
    if codes.shape[1:] != grid.shape:
        shape, needed = ("×".join(map(str, sides)) for sides in (codes.shape[1:], grid.shape))
        raise InputError(f"{path}: `{name}` has grids of {shape} codes, but this tokenizer has {needed}")
    if codes.min() < 0 or codes.max() >= grid.num_embeddings:
        outlier = codes.min() if codes.min() < 0 else codes.max()
        raise InputError(f"{path}: code {outlier} in `{name}`: codes must be from 0 to {grid.num_embeddings - 1}")
    return codes
