"""Decoded pictures of a folder, kept in a cache between commands: decoding takes most of the time to a first step.

They are used as long as the names, sizes and times of the files do not change.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch

from codegrid.errors import InputError
from codegrid.files import as_stamp, open_plain, user_cache, write_folder, write_json
from codegrid.tensors import digest_of, read_json, sha256

FORMAT = "codegrid pictures 1"
PIXELS, INDEX = "pixels.bin", "index.json"
MANY = 2000  # pictures that are worth keeping
ROOM = 8 * 2**30  # bytes for all of them together, and never more than half of the free disk
SETTLED = 2 * 10**9  # ns since the last change: a second change soon after could have the same time


class Decoded(NamedTuple):
    """Pictures, decoded."""

    images: torch.Tensor  # (n, c, H, W) uint8
    notes: Counter[str]  # what users should know about them, and for how many it holds


def cache_folder() -> Path:
    """Return the folder for decoded pictures."""
    return user_cache() / "pictures"


def keep(made_as: object, paths: Sequence[Any]) -> KeptPictures | None:
    """Return the `KeptPictures` of these arguments; None if the pictures are few, are not files, or cannot be kept."""
    if len(paths) >= MANY and isinstance(paths[0], Path):
        with suppress(RuntimeError):  # there is no home folder
            return KeptPictures(made_as, paths)
    return None


class KeptPictures:
    """Decoded pictures of some files.

    Args:
        made_as: a JSON value that names the set and says how it is decoded. A newer version of a set replaces it.
        paths: the files, in order.
    """

    def __init__(self, made_as: object, paths: Sequence[Path]) -> None:
        self.folder = cache_folder() / digest_of(made_as)[:32]
        self.stamp = _stamp_of(paths)

    def read(self, shape: tuple[int, ...]) -> Decoded | None:
        """Return the pictures (n, c, H, W) of this shape; None if they are not kept, or are damaged."""
        try:
            index = read_json(self.folder / INDEX)
            if not self.stamp or (index["format"], index["stamp"]) != (FORMAT, self.stamp):
                return None
            with open_plain(self.folder / PIXELS) as file:
                pixels = np.fromfile(file, np.uint8)
            if sha256(pixels) != index["sha256"]:
                return None
            os.utime(self.folder / INDEX)  # recently used ones are removed last
            return Decoded(torch.from_numpy(pixels.reshape(shape)), Counter(index["notes"]))
        except (InputError, OSError, ValueError, TypeError, KeyError):  # they are decoded again
            return None

    def write(self, decoded: Decoded) -> None:
        """Keep pictures, unless their files have just changed or there is no room."""
        pixels = np.ascontiguousarray(decoded.images.numpy())
        with suppress(InputError, OSError):
            cache_folder().mkdir(parents=True, exist_ok=True)
            if not self.stamp or not _make_room(pixels.nbytes):
                return
            with write_folder(self.folder, index=INDEX) as staging:
                pixels.tofile(staging / PIXELS)
                index = {"format": FORMAT, "stamp": self.stamp, "sha256": sha256(pixels), "notes": decoded.notes}
                write_json(staging / INDEX, index)


def _stamp_of(paths: Sequence[Path]) -> str:
    """Return a digest that changes with any of the files and with Pillow; empty if changes could go unnoticed."""
    try:
        found = [os.stat(path) for path in paths]
    except OSError:
        return ""
    if time.time_ns() - max(max(each.st_mtime_ns, each.st_ctime_ns) for each in found) < SETTLED:
        return ""
    stamps = np.array(list(map(as_stamp, found)), dtype=object)
    numbers = (stamps % 2**64).astype(np.uint64)  # times before 1970 are below 0
    names = "\0".join(map(str, paths)).encode(errors="surrogateescape")
    return digest_of([PIL.__version__, sha256(names), sha256(numbers)])


def _make_room(needed: int) -> bool:
    """Remove the least recently used pictures until there is room; return False if there cannot be."""
    kept = sorted(_all_kept())
    taken = sum(size for _, size, _ in kept)
    room = min(ROOM, (shutil.disk_usage(cache_folder()).free + taken) // 2)
    if needed > room:
        return False
    for _, size, folder in kept:
        if taken + needed <= room:
            break
        shutil.rmtree(folder, ignore_errors=True)
        taken -= size
    return True


def _all_kept() -> Iterator[tuple[float, int, Path]]:
    """Yield when each set of pictures was last used, its bytes and its folder."""
    for folder in cache_folder().iterdir():
        with suppress(OSError):
            yield (folder / INDEX).stat().st_mtime, (folder / PIXELS).stat().st_size, folder
