"""The one way files get onto the disk: written aside, flushed, renamed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .locks import check_held

STAGING = ".partial"


@contextmanager
def write_folder(folder: str | Path, index: str = "") -> Iterator[Path]:
    """Write several files into `folder` so that no reader ever takes half of them for the whole.

    Yields an empty staging folder. When the block ends, its files are flushed to disk and moved into
    `folder` one by one, the one named `index` last: a folder without its index is not whole. An old
    index is taken away before the first file is replaced. Without an index each file stands for itself. If the block
    raises, `folder` is as it was.

    Raises `InputError` where the folder is that of a run, and someone has removed it.
    """
    folder = Path(folder)
    staging = folder / STAGING
    check_held(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(staging, ignore_errors=True)  # what a killed writer left
    staging.mkdir()
    try:
        yield staging
        names = sorted(path.name for path in staging.iterdir())
        for name in names:
            _flush(staging / name)
        if index and len(names) > 1 and (folder / index).exists():
            (folder / index).unlink()
            _flush(folder)
        for name in sorted(names, key=lambda name: name == index):
            os.replace(staging / name, folder / name)
        _flush(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` as readable JSON: for use inside a `write_folder` block."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def is_below(path: str | Path, folder: str | Path) -> bool:
    """Return whether a path leads to something in a folder, once all links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _flush(path: Path) -> None:
    """Ask the operating system to have a file, or a folder's list of names, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
