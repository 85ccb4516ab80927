"""Codes to decode or to train on: a code dataset, or plain arrays in an .npz, .npy or Parquet file.

Shapes: n images, v views, b batch, *shape the sites of a grid, K num_embeddings.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from codegrid.codes import MAX_AXES, NO_LABEL, Grid, Layout, describe_layout
from codegrid.errors import InputError
from codegrid.limits import MAX_CLASSES, MAX_VIEWS, short
from codegrid.protocols import Tokenizer
from codegrid.tensors import digest_of, sha256

from .codes import CodeBatch, CodeDataset, IndexedCodes, view_numbers
from .loading import Indices, in_batches, item_numbers
from .manifest import CAPTIONS, FILE_COLUMN, FILES, LABELS, CodeHeader
from .npz import VIEWS_ARRAY, code_names, read_npy, read_npz
from .parquet import read_parquet
from .shards import Column

PLAIN = (".npz", ".npy", ".parquet")
AT_ONCE = 1024  # images whose file names are read at once


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
        arrays: `codes`, or `codes.0`, `codes.1`, ... for several grids, (n·v, *shape) whole numbers, the v views of an
            image after one another; optionally `labels` (n·v,), NO_LABEL where there is none, `files` (n·v,), the names
            of the files that they were made from, `captions` (n·v, k) texts, empty ones after those of an image, and
            `views` (), v if it is not 1.
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
        self.captions = _check_captions(file, arrays.get(CAPTIONS), count)
        self.views = _views_of(file, arrays, count)
        if self.labels is not None and self.views > 1:
            if (self.labels.reshape(-1, self.views) != self.labels[:: self.views, None]).any():
                raise InputError(f"{file}: `labels` must be equal for the {self.views} `views` of an image")
            self.labels = self.labels[:: self.views]
        self.files = None if self.files is None else self.files[:: self.views]
        self.captions = None if self.captions is None else self.captions[:: self.views]

    def __len__(self) -> int:
        return len(self.codes[0]) // self.views

    def batch(self, indices: Indices, view: int | Indices = 0) -> CodeBatch:
        """Return the codes of some images; see `IndexedCodes.batch`."""
        chosen = item_numbers(indices, len(self))
        rows = chosen * self.views + view_numbers(view, len(chosen), self.views)
        columns: dict[str, Column] = {}
        if self.labels is not None:
            columns[LABELS] = torch.from_numpy(self.labels[chosen].astype(np.int64))
        if self.files is not None:
            columns[FILES] = self.files[chosen].tolist()
        if self.captions is not None:
            columns[CAPTIONS] = self.captions[chosen].tolist()
        return CodeBatch(tuple(torch.from_numpy(grid[rows].astype(np.int64)) for grid in self.codes), columns)

    def tables(self) -> dict[str, torch.Tensor]:
        """Raise `InputError`: a file of arrays does not hold what its codes stand for."""
        raise InputError(f"{self.folder} holds codes, but not what they stand for: name their tokenizer as `tokenizer`")

    def fingerprint(self) -> str:
        """Return a digest that differs between different arrays."""
        texts = [None if column is None else column.tolist() for column in (self.files, self.captions)]
        return digest_of([asdict(self.header), *(texts if self.captions is not None else texts[:1])])

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
        columns: dict[str, dict[str, Any]] = {} if self.files is None else {FILES: dict(FILE_COLUMN)}
        if self.captions is not None:
            columns[CAPTIONS] = {"kind": "text", "shape": [self.captions.shape[1]]}
        fingerprint = self._known.tokenizer_fingerprint
        return CodeHeader(len(self), grids, self.classes, "", fingerprint, source, self.views, columns=columns)


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
    return CodeArray(path, arrays, tokenizer.layout, header or NOTHING)


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
    if header and (header.num_images != len(codes) or header.classes != codes.classes):
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
        arrays, header = read_parquet(path)
        return arrays | ({VIEWS_ARRAY: np.array(header.views)} if header else {}), header
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


def files_of(codes: AnyCodes, images: range) -> list[str] | None:
    """Return the names of the files that the codes of some images were made from; None if the codes do not say."""
    if isinstance(codes, CodeArray):
        return None if codes.files is None else codes.files[images.start : images.stop].tolist()
    if codes.header.columns.get(FILES) != FILE_COLUMN:
        return None
    pieces = (codes.batch(some).columns[FILES] for some in in_batches(images, AT_ONCE))
    return [str(name) for piece in pieces for name in piece]


def _views_of(path: Path, arrays: dict[str, np.ndarray], count: int) -> int:
    """Return the number of views of each image: the array `views`, if it is a single number."""
    views = arrays.get(VIEWS_ARRAY, np.array(1))
    if views.shape != ():
        return 1  # something else
    if views.dtype.kind not in "iu" or not 1 <= views <= MAX_VIEWS or count % views:
        words = f"it must be a whole number from 1 to {MAX_VIEWS:,} that divides the {count} grids"
        raise InputError(f"{path}: `{VIEWS_ARRAY}` {short(views.item())}: {words}")
    return int(views)


def _check_captions(path: Path, captions: np.ndarray | None, count: int) -> np.ndarray | None:
    """Return captions (n, k), if there are any."""
    if captions is None:
        return None
    captions = captions[:, None] if captions.ndim == 1 else captions
    if captions.ndim != 2 or len(captions) != count or captions.dtype.kind not in "UO":
        raise InputError(f"{path}: `{CAPTIONS}` must hold one or more texts for each of {count} grids")
    return captions


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
