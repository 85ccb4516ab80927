"""Images as array files that others' tools read: `arr_0` uint8 NHWC and, if there are any, `arr_1` labels.

Many images are cut into shards. Both writing and reading hold a batch at a time, not a shard.

Shapes: n images of a file, b batch, c channels, H W image.
"""

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from codegrid.files import write_folder

from .images import to_float
from .loading import in_order
from .npy_stream import open_array, read_shape

ON_A_PAGE = 100


def describe(files: dict[str, range]) -> str:
    """The names of the files, for people."""
    names = list(files)
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def image_files(name: str, num_images: int, shard_size: int) -> dict[str, range]:
    """File names and the images of each: NAME.npz where one holds all, otherwise NAME-00000.npz, ..."""
    if num_images <= shard_size:
        return {f"{name}.npz": range(num_images)}
    return {f"{name}-{i:05d}.npz": numbers for i, numbers in enumerate(in_order(num_images, shard_size))}


def missing_files(folder: str | Path, files: dict[str, range], with_labels: bool) -> dict[str, range]:
    """Those that are not there, or not whole: what a run that was stopped has still to do."""
    arrays = ["arr_0.npy", "arr_1.npy"][: 1 + with_labels]
    return {
        name: numbers for name, numbers in files.items() if not _is_whole(Path(folder) / name, len(numbers), arrays)
    }


def write_images(
    folder: str | Path,
    file: str,
    shape: tuple[int, int, int, int],
    batches: Iterable[torch.Tensor],
    labels: np.ndarray | None,
) -> None:
    """Write images (b, c, H, W) uint8 as they come; together they have the given shape (n, c, H, W)."""
    count, channels, height, width = shape
    with write_folder(folder, index=file) as staging, zipfile.ZipFile(staging / file, "w") as archive:
        with open_array(archive, "arr_0", np.uint8, (count, height, width, channels)) as entry:
            for images in batches:
                entry.write(images.permute(0, 2, 3, 1).contiguous().numpy())
        if labels is not None:
            with open_array(archive, "arr_1", np.int64, labels.shape) as entry:
                entry.write(labels.astype(np.int64).data)


def read_first(folder: str | Path, files: dict[str, range], count: int) -> torch.Tensor:
    """The first `count` images, or all where there are fewer: (n, c, H, W) in [-1, 1]."""
    read = []
    for name in files:
        with zipfile.ZipFile(Path(folder) / name) as archive, archive.open("arr_0.npy") as entry:
            length, *image = read_shape(entry)
            length = min(length, count)
            pixels = np.frombuffer(entry.read(length * math.prod(image)), dtype=np.uint8)
        read.append(torch.from_numpy(pixels.copy()).view(length, *image))
        count -= length
        if not count:
            break
    return to_float(torch.cat(read).permute(0, 3, 1, 2))


def _is_whole(path: Path, num_images: int, arrays: list[str]) -> bool:
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as entry:
            sound = archive.namelist() == arrays and archive.testzip() is None  # its checksums
            return sound and read_shape(entry)[0] == num_images
    except Exception:  # what zipfile says of damage has many types, and each means: make the file again
        return False
