"""One run at a time in a folder: a lock that ends with the process that holds it, however that ends.

The package filelock locks the open file, and the data loading workers of a killed run, which inherit it, would keep
that lock; so it serves on Windows alone, where there is no other.
"""

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"

_held: dict[Path, int] = {}  # folders and the open files in them that carry the locks
_made: set[Path] = set()  # those of them that were not there before
_held_by_filelock: dict[Path, Any] = {}


def hold(folder: str | Path) -> None:
    """Keep other processes out of a folder, which is made where there is none, until `release_all` or this one's end.

    Raises `InputError` where another one holds it.
    """
    folder = Path(folder).resolve()
    if folder in _held or folder in _held_by_filelock:
        return
    if not folder.exists():
        _made.add(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        _held_by_filelock[folder] = _lock_by_filelock(folder)
        return
    descriptor = _open_locked(folder)
    if descriptor is not None:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        _held[folder] = descriptor


def release_all() -> None:
    """Let others into every folder that this process holds."""
    for folder, descriptor in _held.items():
        with suppress(OSError):  # what cannot be tidied up stays: a lock that no one holds keeps no one out
            if _is_there(folder, descriptor):
                (folder / LOCK).unlink()
                if folder in _made and not any(folder.iterdir()):  # for nothing
                    folder.rmdir()
        os.close(descriptor)
    for folder, lock in _held_by_filelock.items():
        lock.release()
        with suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
            if folder in _made and not any(folder.iterdir()):
                folder.rmdir()
    _held.clear()
    _held_by_filelock.clear()
    _made.clear()


def check_held(folder: Path) -> None:
    """Raise `InputError` where a folder, or one around it, that this process held has been taken away."""
    folder = folder.resolve()
    for held, descriptor in _held.items():
        if held in (folder, *folder.parents) and not _is_there(held, descriptor):
            raise InputError(f"{held} was removed or replaced while a run used it: run the same command again")


def _open_locked(folder: Path) -> int | None:
    """The lock's open file; None where the disk has no locks."""
    while True:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # a lock of the process and not of the open file: that one a killed run's data loading workers would keep
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _in_use(folder, holder) from error
            return None
        if _is_there(folder, descriptor):  # else its holder has just removed it
            return descriptor
        os.close(descriptor)


def _lock_by_filelock(folder: Path) -> Any:
    import filelock  # comes with torch

    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise _in_use(folder, "another process") from error
    return lock


def _in_use(folder: Path, holder: str) -> InputError:
    return InputError(f"{folder} is in use by another run ({holder}): wait for its end, or choose another `output`")


def _is_there(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(folder / LOCK), os.fstat(descriptor))
    except OSError:
        return False
