"""Arrays in .npz files that other tools can read: images and codes, written batch by batch.

`numpy.savez` would need all rows at once. Images are `arr_0` uint8 NHWC, with labels `arr_1` if there are any; large
sets are cut into shards. Codes of one grid are `codes` (n, *shape), those of several `codes.0`, `codes.1`, ...; columns
have their own names. Of several views of each image, n rows with equal columns follow one another, and `views` () says
how many.

Shapes: n images or rows of a file, b batch, c channels, H W image, *shape the sites of a grid.
"""

import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import torch

from codegrid.budget import check_memory, check_not_hollow
from codegrid.errors import InputError, reason_of
from codegrid.files import write_folder
from codegrid.tensors import digest_of_file

from .codes import CodeBatch
from .digests import read_digests, write_digests
from .images import to_float
from .loading import in_order
from .manifest import CodeHeader
from .shards import COLUMN_TYPES, smallest_dtype

Shape = tuple[int, ...]  # (n, c, H, W) of images, (n, c, T) of sound
ON_A_PAGE = 100
VIEWS_ARRAY = "views"
COPIED = 2**22  # bytes at once: a multiple of the size of every type


def image_files(name: str, num_images: int, shard_size: int) -> dict[str, range]:
    """Return file names with the images of each: NAME.npz if one file holds all, otherwise NAME-00000.npz, ..."""
    if num_images <= shard_size:
        return {f"{name}.npz": range(num_images)}
    return {f"{name}-{i:05d}.npz": numbers for i, numbers in enumerate(in_order(num_images, shard_size))}


def write_images(
    folder: str | Path, file: str, shape: Shape, batches: Iterable[torch.Tensor], labels: np.ndarray | None
) -> None:
    """Write images (b, c, H, W) uint8 as they arrive; together they have the given shape (n, c, H, W).

    The file is recorded as finished: see `unwritten`.
    """
    count, channels, height, width = shape
    with write_folder(folder, index=file) as staging:
        with zipfile.ZipFile(staging / file, "w") as archive:
            with _open_array(archive, "arr_0", np.uint8, (count, height, width, channels)) as entry:
                for images in batches:
                    entry.write(images.permute(0, 2, 3, 1).contiguous().numpy())
            if labels is not None:
                _write_array(archive, "arr_1", labels.astype(np.int64))
        digest = digest_of_file(staging / file)
    write_digests(folder, {**read_digests(folder), file: digest})


def read_first(folder: str | Path, files: dict[str, range], count: int) -> torch.Tensor:
    """Return the first `count` images, or all if there are fewer: (n, c, H, W) in [-1, 1]."""
    read = []
    for name in files:
        with zipfile.ZipFile(Path(folder) / name) as archive, archive.open("arr_0.npy") as entry:
            np.lib.format.read_magic(entry)
            length, *image = np.lib.format.read_array_header_1_0(entry)[0]
            length = min(length, count)
            pixels = np.frombuffer(entry.read(length * math.prod(image)), dtype=np.uint8)
        read.append(torch.from_numpy(pixels.copy()).view(length, *image))
        count -= length
        if not count:
            break
    return to_float(torch.cat(read).permute(0, 3, 1, 2))


def write_npz(path: Path, header: CodeHeader, shards: Iterable[CodeBatch]) -> None:
    """Write the codes of each grid as int64, and the columns, from shards of rows that arrive one after the other."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in header.columns}
    with ExitStack() as stack:
        # an archive takes one array at a time: until then, the codes of each grid wait in an unnamed file
        aside = [stack.enter_context(TemporaryFile(dir=path.parent)) for _ in header.grids]
        dtypes = [smallest_dtype(grid.num_embeddings) for grid in header.layout]
        for shard in shards:
            for codes, file, dtype in zip(shard.codes, aside, dtypes, strict=True):
                file.write(codes.numpy().astype(dtype).tobytes())
            for name, values in columns.items():
                values.append(np.asarray(shard.columns[name], dtype=COLUMN_TYPES.get(header.columns[name]["kind"])))
        # the fastest level: the default would add a tenth to the encoding time, for a file smaller by a seventh
        archive = stack.enter_context(zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1))
        for name, grid, file, dtype in zip(code_names(len(aside)), header.layout, aside, dtypes, strict=True):
            file.seek(0)
            with _open_array(archive, name, np.int64, (header.num_rows, *grid.shape)) as entry:
                while piece := file.read(COPIED):
                    entry.write(np.frombuffer(piece, dtype).astype(np.int64).tobytes())
        for name, values in columns.items():
            _write_array(archive, name, np.concatenate(values))
        if header.views > 1:
            _write_array(archive, VIEWS_ARRAY, np.array(header.views))


def code_names(num_grids: int) -> list[str]:
    """Return the names of the arrays or columns of codes: `codes`, or `codes.0`, `codes.1`, ... for several grids."""
    return ["codes"] if num_grids == 1 else [f"codes.{number}" for number in range(num_grids)]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays in an npz file; pickled ones are refused, and other files in it are ignored."""
    check_not_hollow(path)
    try:
        if not zipfile.is_zipfile(path):  # numpy would read it as a single array, or a pickle
            raise ValueError("it is not a zip file")
        with np.load(path, allow_pickle=False) as file:
            entries = [entry for entry in _all_entries(path, file.zip) if entry.filename.endswith(".npy")]
            # zeros compress a thousandfold: a small file can fill any machine
            needed = sum(entry.file_size for entry in entries)
            check_memory(f"the arrays of {path}", needed, "cut it into several files")
            arrays = {entry.filename.removesuffix(".npy"): file[entry.filename] for entry in entries}
    except InputError:
        raise
    except Exception as error:  # zip, header and pickle errors have many types: each means a file we cannot read
        raise InputError(f"{path} is not a readable npz file ({reason_of(error)}): save it with numpy.savez") from error
    # if an entry is named like an array but is not one, numpy returns its bytes
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}


def read_npy(path: Path) -> np.ndarray:
    """Return the array in an npy file; a pickled one is refused."""
    check_not_hollow(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: no header makes it larger than the file
    except Exception as error:  # header and pickle errors have many types: each means a file we cannot read
        raise InputError(f"{path} is not a readable npy file ({reason_of(error)}): save it with numpy.save") from error
    check_memory(f"the numbers of {path}", array.nbytes, "cut it into several files")
    return array


def _all_entries(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return the entries of an archive; ValueError if damage to its directory, which has no checksum, hides some.

    One flipped bit there makes zipfile skip the entry `labels`, and the codes would be read without their labels.
    """
    entries = archive.infolist()
    for entry in entries:
        archive.open(entry).close()  # compares its name with that in front of its data
    with path.open("rb") as file:
        file.seek(-22, os.SEEK_END)  # the record at the end has their number, which zipfile does not check
        end = file.read()
    count = int.from_bytes(end[10:12], "little")
    if end.startswith(b"PK\x05\x06") and count not in (len(entries), 0xFFFF):
        raise ValueError(f"only {len(entries)} of {count} arrays are found")
    return entries


@contextmanager
def _open_array(archive: zipfile.ZipFile, name: str, dtype: type | np.dtype, shape: Sequence[int]) -> Iterator[IO]:
    """Yield a file in the archive to which the bytes of such an array, in C order, can be written."""
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:  # zip64: its size is not known yet
        np.lib.format.write_array_header_1_0(entry, description)
        yield entry


def _write_array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with _open_array(archive, name, array.dtype, array.shape) as entry:
        entry.write(np.ascontiguousarray(array).tobytes())
