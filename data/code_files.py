"""Codes to decode or to train on: a code dataset, or plain arrays in an .npz, .npy or Parquet file.

Shapes: n rows, b batch, *shape the sites of a grid, K num_embeddings.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from codegrid.codes import MAX_AXES, NO_LABEL, Grid, Layout, describe_layout
from codegrid.errors import InputError
from codegrid.limits import MAX_CLASSES
from codegrid.protocols import Tokenizer
from codegrid.tensors import digest_of, sha256

from .codes import CodeBatch, CodeDataset, IndexedCodes
from .loading import Indices, item_numbers
from .manifest import FILE_COLUMN, FILES, LABELS, CodeHeader
from .npz import code_names, read_npy, read_npz
from .parquet import read_parquet
from .shards import Column

PLAIN = (".npz", ".npy", ".parquet")
AT_ONCE = 1024  # rows read at once for their file names


class Assumed(NamedTuple):
    """Facts that are assumed about arrays of codes if their file does not say."""

    layout: Layout = ()  # of the tokenizer; empty: the arrays' own shapes, and as many entries as their codes need
    tokenizer_fingerprint: str = ""
    classes: Sequence[str] = ()  # empty: as many as the labels need


NOTHING = Assumed()


class CodeArray(IndexedCodes):
    """Codes from plain arrays, with the methods of `CodeDataset` that decoding and training need.

    Args:
        file: the file that they came from.
        arrays: `codes`, or `codes.0`, `codes.1`, ... for several grids, (n, *shape) whole numbers; optionally `labels`
            (n,), NO_LABEL where there is none, and `files` (n,), the names of the files that the rows were made from.
        layout: the grids.
        known: the header of the file, or what is assumed instead.

    Raises `InputError` if the arrays are not of this form.
    """

    def __init__(
        self, file: Path, arrays: dict[str, np.ndarray], layout: Layout, known: CodeHeader | Assumed = NOTHING
    ) -> None:
        self.folder, self.layout, self._known = file, layout, known
        names = code_names(len(layout))
        if len(layout) == 1 and "codes" not in arrays:  # saved without names
            arrays = {{"arr_0": "codes", "arr_1": "labels"}.get(name, name): array for name, array in arrays.items()}
        pairs = zip(names, layout, strict=True)
        self.codes = tuple(_check_grids(file, name, arrays.get(name), grid) for name, grid in pairs)
        count = len(self.codes[0])
        if any(len(grids) != count for grids in self.codes):
            raise InputError(f"{file}: {', '.join(names)} must all hold the same number of grids")
        self.labels, self.files = arrays.get("labels"), arrays.get(FILES)
        if self.labels is not None:
            if self.labels.shape != (count,) or self.labels.dtype.kind not in "iu":
                raise InputError(f"{file}: `labels` must hold one whole number for each of {count} grids")
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < NO_LABEL or high >= MAX_CLASSES:
                words = f"labels must be from 0, or {NO_LABEL} for none, to {MAX_CLASSES - 1}"
                raise InputError(f"{file}: label {low if low < NO_LABEL else high}: {words}")
        # O: strings read from Parquet
        if self.files is not None and (self.files.shape != (count,) or self.files.dtype.kind not in "UO"):
            raise InputError(f"{file}: `{FILES}` must hold one name for each of {count} grids")

    def __len__(self) -> int:
        return len(self.codes[0])

    def batch(self, indices: Indices) -> CodeBatch:
        """Return some rows, in the given order."""
        chosen = item_numbers(indices, len(self))
        columns: dict[str, Column] = {}
        if self.labels is not None:
            columns[LABELS] = torch.from_numpy(self.labels[chosen].astype(np.int64))
        if self.files is not None:
            columns[FILES] = self.files[chosen].tolist()
        return CodeBatch(tuple(torch.from_numpy(grid[chosen].astype(np.int64)) for grid in self.codes), columns)

    def tables(self) -> dict[str, torch.Tensor]:
        """Raise `InputError`: a file of arrays does not hold what its codes stand for."""
        raise InputError(f"{self.folder} holds codes, but not what they stand for: name their tokenizer as `tokenizer`")

    def fingerprint(self) -> str:
        """Return a digest that differs between different arrays."""
        return digest_of([asdict(self.header), None if self.files is None else self.files.tolist()])

    @property
    def classes(self) -> list[str]:
        """The name of each label, or its number; empty if there are no labels."""
        if self.labels is None:
            return []
        count, names = int(self.labels.max()) + 1, list(self._known.classes)
        return names if count <= len(names) else [str(label) for label in range(count)]

    @cached_property
    def header(self) -> CodeHeader:
        """The header that a code dataset of these codes would have; its `source` is a digest of the arrays."""
        arrays = [*self.codes, *([] if self.labels is None else [self.labels])]
        parts = [[list(array.shape), str(array.dtype), sha256(np.ascontiguousarray(array))] for array in arrays]
        source = digest_of(parts)
        if isinstance(self._known, CodeHeader):
            return replace(self._known, source=source)
        grids = [grid.as_json() for grid in self.layout]
        columns = {} if self.files is None else {FILES: dict(FILE_COLUMN)}
        fingerprint = self._known.tokenizer_fingerprint
        return CodeHeader(len(self), grids, self.classes, "", fingerprint, source, columns=columns)


AnyCodes = CodeDataset | CodeArray


def open_codes(source: str | Path, tokenizer: Tokenizer) -> AnyCodes:
    """Open codes that this tokenizer can decode.

    Args:
        source: the folder of a code dataset, or an .npz, .npy or .parquet file.

    Raises `InputError` if they are another tokenizer's, or do not have its layout.
    """
    path = Path(source)
    if _is_folder(path):
        dataset = CodeDataset(path)
        check_fingerprint(path, dataset.header.tokenizer_fingerprint, tokenizer)
        if not _fits(dataset.layout, tokenizer.layout):
            theirs, ours = describe_layout(dataset.layout), describe_layout(tokenizer.layout)
            raise InputError(f"{source} holds {theirs}, but this tokenizer has {ours}: export the codes again")
        return dataset
    arrays, header = _read_plain(path)
    if header:
        check_fingerprint(path, header.tokenizer_fingerprint, tokenizer)
    return CodeArray(path, arrays, tokenizer.layout)


def open_to_learn(source: str | Path, assumed: Assumed = NOTHING) -> AnyCodes:
    """Open codes that a prior can be trained on.

    Args:
        source: the folder of a code dataset, or an .npz, .npy or .parquet file.
        assumed: facts about arrays that do not say.

    Raises `InputError` if they are not codes, or if some have labels and others do not.
    """
    path = Path(source)
    if _is_folder(path):
        return CodeDataset(path)
    arrays, header = _read_plain(path)
    layout = header.layout if header else assumed.layout or _layout_of(path, arrays)
    codes = CodeArray(path, arrays, layout, header or assumed)
    if header and (header.num_rows != len(codes) or header.classes != codes.classes):
        raise InputError(f"{path} is damaged (it does not hold what its header says): export the codes again")
    if codes.labels is not None and codes.labels.min() < 0:
        raise InputError(f"{path}: some labels are {NO_LABEL}: give each grid a class, or leave the labels out")
    return codes


def _is_folder(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() not in PLAIN


def _read_plain(path: Path) -> tuple[dict[str, np.ndarray], CodeHeader | None]:
    """Return the arrays in a file, and the header, which our own Parquet files have."""
    if not path.is_file():
        raise InputError(f"no file {path}: give a file of codes ({' '.join(PLAIN)}), or a folder of exported codes")
    if path.suffix.lower() == ".parquet":
        return read_parquet(path)
    return ({"codes": read_npy(path)} if path.suffix.lower() == ".npy" else read_npz(path)), None


def _fits(layout: Layout, decodable: Layout) -> bool:
    """Return whether a decoder can decode codes of this layout: it may know more entries than the codes use."""
    return len(layout) == len(decodable) and all(
        grid.shape == known.shape and grid.num_embeddings <= known.num_embeddings
        for grid, known in zip(layout, decodable, strict=True)
    )


def check_fingerprint(path: Path, fingerprint: str, tokenizer: Tokenizer) -> None:
    """Raise `InputError` if codes from this path were not made by this tokenizer."""
    if fingerprint != tokenizer.fingerprint():
        raise InputError(
            f"{path} holds codes of another tokenizer (fingerprints differ): give the one that made them, or export "
            "them again"
        )


def _layout_of(path: Path, arrays: dict[str, np.ndarray]) -> Layout:
    """Return the grids of arrays of codes, judged by the codes alone; refuse unnamed arrays, which may be images."""
    names = code_names(1 if "codes" in arrays else max(1, sum(name.startswith("codes.") for name in arrays)))
    layout = []
    for name in names:
        codes = arrays.get(name)
        if codes is None or not 2 <= codes.ndim <= 1 + MAX_AXES or codes.dtype.kind not in "iu" or not codes.size:
            raise InputError(f"{path}: `{name}` must be whole numbers of shape (n, t), (n, h, w) or (n, t, h, w)")
        layout.append(Grid(codes.shape[1:], max(1, int(codes.max()) + 1)))
    return tuple(layout)


def files_of(codes: AnyCodes, rows: range) -> list[str] | None:
    """Return the names of the files that some rows were made from; None if the codes do not say."""
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
