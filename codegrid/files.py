"""Writing files safely (to a staging folder, flushed, then moved), and opening untrusted files."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import InputError
from .locks import check_held
from .strict_json import to_json

Stamp = tuple[int, int, int, int]  # inode, bytes and times of a file
STAGING = ".partial"
SETTINGS_FILE = "settings.yaml"  # the settings of the run that wrote a folder, which `--config` reads
CLASSIFIER = "classifier"  # the folder, in that of a run, of a classifier that the run trained


def user_cache() -> Path:
    """Return this user's folder for files that can be recreated: codegrid in $XDG_CACHE_HOME, or in ~/.cache.

    It is created if missing, writable by this user alone whatever the umask: native code is kept there. If it cannot be
    created, the first write into it fails.

    Raises RuntimeError if there is no home folder.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "codegrid"
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@contextmanager
def write_folder(folder: str | Path, index: str = "") -> Iterator[Path]:
    """Write several files into `folder` so that no reader ever mistakes half of them for the whole.

    Yields an empty staging folder. When the block ends, its files are flushed to disk and moved into `folder` one by
    one, the one named `index` last: a folder without its index is incomplete. An old index is removed before the first
    file is replaced. Without an index, each file is independent of the others. Files in folders are moved into folders
    of the same names. If the block raises, `folder` is as it was.

    Raises `InputError` if the folder belongs to a run, and someone has removed it or replaced it by a link.
    """
    folder = Path(folder)
    staging = folder / STAGING
    check_held(folder)
    was_made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    _remove(staging)  # what a killed writer left
    staging.mkdir()
    try:
        yield staging
        names = sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if not path.is_dir())
        for name in names:
            _flush(staging / name)
        if index and len(names) > 1 and (folder / index).exists():
            (folder / index).unlink()
            _flush(folder)
        for place in sorted(staging.iterdir()):
            if place.is_dir() and not os.path.lexists(folder / place.name):
                os.replace(place, folder / place.name)  # a whole folder at once, so that it never is half there
        for name in sorted(names, key=lambda name: name == index):
            if (staging / name).exists():
                _move(staging, folder, name)
        for place in {(folder / name).parent for name in names} | {folder}:
            _flush(place)
    finally:
        _remove(staging)
        if was_made:
            with suppress(OSError):  # it is not empty, unless the block raised
                folder.rmdir()


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that no reader ever finds half of it, and nothing else in its folder is touched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o666 & ~_umask())
        _flush(Path(name))
        os.replace(name, path)
        _flush(path.parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _move(source: Path, target: Path, name: str) -> None:
    """Move a file between folders, and replace what is there."""
    parent = (target / name).parent
    if parent != target:
        check_held(parent)  # a link could lead out of it
        parent.mkdir(parents=True, exist_ok=True)
    os.replace(source / name, target / name)


def remove_folder(folder: Path, names: Iterable[str]) -> None:
    """Remove the named files of a folder that `write_folder` wrote, in order, and the folder if that leaves it empty.

    Whatever cannot be removed stays. Links are not followed.
    """
    if folder.is_symlink():
        return
    _remove(folder / STAGING)
    for name in names:
        with suppress(OSError):
            (folder / name).unlink()
    with suppress(OSError):
        folder.rmdir()


def write_json(path: Path, value: object) -> None:
    """Write `value` as readable JSON: for use inside a `write_folder` block."""
    path.write_text(to_json(value, indent=2) + "\n", encoding="utf-8")


def open_plain(path: str | Path) -> BinaryIO:
    """Open an untrusted file for reading.

    Raises `InputError` if it is not a plain file: opening a pipe could wait forever, and a device has no end.
    """
    _refuse_other_kinds(path, os.stat(path).st_mode)  # first: some devices act when they are opened
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    file = os.fdopen(descriptor, "rb")
    try:
        _refuse_other_kinds(path, os.fstat(descriptor).st_mode)
    except InputError:
        file.close()
        raise
    return file


def read_plain(path: str | Path, at_most: int) -> bytes:
    """Return the content of an untrusted file.

    Raises `InputError` if it is longer than `at_most` bytes, or not a plain file.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(min(size, at_most) + 1)  # memory for all of it is taken at once, however short the file
    if len(content) > min(size, at_most):
        raise InputError(f"{path} is damaged ({size:,} bytes, at most {at_most:,} are read): copy or make it again")
    return content


def _refuse_other_kinds(path: str | Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    raise InputError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file: give a plain file")


def _remove(path: Path) -> None:
    """Remove a folder and everything in it, or a link in its place."""
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def stamp_of(path: Path) -> Stamp | None:
    """Return a stamp that changes whenever a file is replaced or modified; None if there is no file."""
    try:
        return as_stamp(path.stat())
    except OSError:
        return None


def as_stamp(found: os.stat_result) -> Stamp:
    """Return the stamp of a file with this status."""
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def is_below(path: str | Path, folder: str | Path) -> bool:
    """Return whether a path leads into a folder once all links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
