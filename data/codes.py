"""The code dataset: grids of codes, and everything needed to use them correctly.

A folder holds shards `codes-00000.safetensors`, ..., whose tensors `shards.py` describes, `tables.safetensors` with
the entries of the quantizer (`entries.0` (K, D) for the first grid, ...; missing if they cannot be listed), and
`manifest.json`, which is written last and completes the folder. A shard is checked when it is first read. Datasets of
up to `IN_MEMORY_BYTES` are then kept in memory: no change of a file can affect what was checked. Larger ones are
memory-mapped, and a shard is checked again if its file has changed.

Shapes: n images, v views, b batch, *shape the sites of a grid or the shape of a column, K num_embeddings.
"""

import operator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from codegrid.codes import Codes, describe_layout
from codegrid.errors import InputError
from codegrid.files import Stamp, stamp_of
from codegrid.tensors import check_finite, digest_of, read_tensors

from .loading import Indices, item_numbers
from .manifest import LABELS, TABLES, CodeHeader, read_manifest
from .shards import COLUMN_TYPES, Arrays, Column, column_of, read_shard

IN_MEMORY_BYTES = 2**30


class CodeBatch(NamedTuple):
    """Codes of some images, and what else is known of them; those of a single one have no batch axis."""

    codes: Codes  # (b, *shape) int64, one for each grid
    columns: dict[str, Column]  # (b, *shape) int64 or float32, or texts, by name

    @property
    def labels(self) -> torch.Tensor | None:
        """Labels (b,) int64; None if there are none."""
        return self.columns.get(LABELS)  # type: ignore[return-value]


def view_numbers(view: int | Indices, count: int, views: int) -> np.ndarray:
    """Return the view of each of `count` images, (count,). Raises IndexError if there are not so many views."""
    numbers = np.broadcast_to(item_numbers(np.atleast_1d(view)), count)
    outside = numbers[(numbers < 0) | (numbers >= views)]
    if outside.size:
        raise IndexError(f"view {outside[0]}, but there are {views}, from 0")
    return numbers


class IndexedCodes(Dataset[CodeBatch]):
    """Base class that makes a torch dataset of anything that can read a `batch` of codes.

    An index gives the codes of an image: `dataset[3]`, `dataset[-1]`. A slice, a list, array or tensor of indices, or a
    mask (n,) bool gives them as one batch, as `dataset.batch` does. Of several views it is view 0, the image as it is.
    """

    views: int = 1  # v, of each image

    def __len__(self) -> int:
        """Return the number of images, n."""
        raise NotImplementedError

    def batch(self, indices: Indices, view: int | Indices = 0) -> CodeBatch:
        """Return the codes of some images, in the given order.

        Args:
            indices: of the images; they may repeat or count from the end.
            view: of all these images, 0 ... v-1, or of each (b,).

        Raises IndexError if there is no such image or view.
        """
        raise NotImplementedError

    def column(self, name: str) -> np.ndarray | None:
        """Return a column of numbers (n, *shape), of all images; None if there is none of this name."""
        return None

    def __getitem__(self, index: Any) -> CodeBatch:
        if isinstance(index, slice):
            return self.batch(range(len(self))[index])
        if np.ndim(index):
            return self.batch(index)
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Indices) -> list[CodeBatch]:
        """Return items for a `DataLoader` to collate, read all at once."""
        codes, columns = self.batch(indices)[:2]
        return [
            CodeBatch(tuple(grid[i] for grid in codes), {name: column[i] for name, column in columns.items()})
            for i in range(len(indices))
        ]


class CodeDataset(IndexedCodes):
    """A code dataset, read shard by shard.

    An item has the codes of an image: a `CodeBatch` without batch axis. Slices, lists, arrays and masks give batches.
    `torch.utils.data.DataLoader` can read it as it is, shuffled and with workers, and collates items into a
    `CodeBatch`; if you have the indices, `batch` is faster, and of `views` encodings of each image it reads any.

    Raises `InputError` if the folder is missing, incomplete or damaged; a damaged shard is found when first read.

    Examples:
        >>> codes = CodeDataset("runs/demo/codes")  # doctest: +SKIP
        >>> (grid,) = codes.batch([0, 5, 9]).codes  # (3, h, w)  # doctest: +SKIP
        >>> (grid,) = codes.batch([0, 5, 9], view=[0, 7, 3]).codes  # of 8 views  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        self.header = CodeHeader(**manifest["header"])
        self.layout, self.classes, self.views = self.header.layout, self.header.classes, self.header.views
        self._records: list[dict[str, Any]] = manifest["shards"]
        self._tables_sha256: str = manifest["tables"]
        self.provenance: dict[str, Any] = manifest["provenance"]
        self._firsts = np.cumsum([0, *(record["num_images"] for record in self._records)])
        self._checked: dict[int, tuple[Stamp, Arrays]] = {}
        for record in self._records:
            if not (self.folder / record["file"]).is_file():
                raise self._incomplete(record["file"])
        size = sum((self.folder / record["file"]).stat().st_size for record in self._records)
        self._in_memory = size <= IN_MEMORY_BYTES

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_checked": {}}  # other processes read the shards themselves

    def __len__(self) -> int:
        return self.header.num_images

    def __repr__(self) -> str:
        classes = f", {len(self.classes)} classes" if self.classes else ""
        views = f", {self.views} views of each" if self.views > 1 else ""
        what = f"{len(self):,} rows of {describe_layout(self.layout)}{views}{classes}, {self.header.split}"
        return f"{type(self).__name__}({str(self.folder)!r}: {what})"

    def batch(self, indices: Indices, view: int | Indices = 0) -> CodeBatch:
        """Return the codes of some images; see `IndexedCodes.batch`."""
        chosen = item_numbers(indices, len(self))
        shown = view_numbers(view, len(chosen), self.views)
        shard_of = np.searchsorted(self._firsts, chosen, side="right") - 1
        codes = [np.empty((len(chosen), *grid.shape), dtype=np.int64) for grid in self.layout]
        columns = {
            name: np.empty((len(chosen), *column["shape"]), COLUMN_TYPES.get(column["kind"], object))
            for name, column in self.header.columns.items()
        }
        for number in np.unique(shard_of):
            arrays, here = self._shard(int(number)), np.flatnonzero(shard_of == number)
            images = chosen[here] - self._firsts[number]
            for grid, values in enumerate(codes):
                values[here] = arrays[f"codes.{grid}"][images * self.views + shown[here]]
            for name, values in columns.items():
                values[here] = column_of(arrays, name, self.header.columns[name], images)
        return CodeBatch(
            tuple(map(torch.from_numpy, codes)),
            {name: v.tolist() if v.dtype == object else torch.from_numpy(v) for name, v in columns.items()},
        )

    def fingerprint(self) -> str:
        """Return a digest that differs between different code datasets."""
        return digest_of([asdict(self.header), [record["sha256"] for record in self._records], self._tables_sha256])

    def tables(self) -> dict[str, torch.Tensor]:
        """Return the quantizer's tables: `entries.0` (K, D) for the first grid, and so on; empty if there are none.

        Raises `InputError` if the file is missing or damaged.
        """
        if not self._tables_sha256:
            return {}
        path = self.folder / TABLES
        if not path.is_file():
            raise self._incomplete(TABLES)
        tables = read_tensors(path, self._tables_sha256)
        check_finite(path, tables)
        for number, grid in enumerate(self.layout):
            entries = tables.get(f"entries.{number}")
            if entries is not None and (entries.ndim != 2 or len(entries) != grid.num_embeddings):
                words = f"has the shape {list(entries.shape)}, not {grid.num_embeddings} rows"
                raise InputError(f"{path}: entries.{number} {words}: export the codes again")
        return tables

    @property
    def labels(self) -> np.ndarray | None:
        """Labels (n,) int64; None if there are none."""
        return self.column(LABELS) if self.classes else None

    def column(self, name: str) -> np.ndarray | None:
        """Return a column of numbers (n, *shape), of all images; None if there is none of this name."""
        if self.header.columns.get(name, {"kind": "text"})["kind"] == "text":
            return None
        return np.concatenate([self._shard(number)[f"columns.{name}"] for number in range(len(self._records))])

    def _shard(self, number: int) -> Arrays:
        """Return a shard, checked if it is new or its file has changed."""
        record, known = self._records[number], self._checked.get(number)
        if known and self._in_memory:
            return known[1]
        path = self.folder / record["file"]
        stamp = stamp_of(path)
        if known and stamp in (None, known[0]):  # a memory map outlives the file
            return known[1]
        if stamp is None:
            raise self._incomplete(record["file"])
        arrays = read_shard(path, record["num_images"], record["sha256"], self.header, self._in_memory)
        self._checked[number] = stamp, arrays
        return arrays

    def _incomplete(self, name: str) -> InputError:
        return InputError(f"{self.folder} is incomplete: it holds no {name}; export the codes again")
