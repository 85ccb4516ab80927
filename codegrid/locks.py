"""Locks that let one run at a time use a folder, and end with the process that holds them, however it ends.

The package filelock locks the open file, which data loading workers inherit: those of a killed run would keep the lock.
So it is used only on Windows, where there is no other.
"""

import errno
import os
import re
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from .errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
OWNER = ".lock-owner"  # on disks without locks: a file that only one process can create
NOT_OURS = (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO)  # a link, a folder, a socket
HOLDER = re.compile(r"process (\d+) on (.*)")


class _Held(NamedTuple):
    """A folder that this process holds."""

    was_made: bool  # it was not there before
    thread: int
    name: str  # of the file in it that keeps others out
    descriptor: int  # of that file
    lock: Any = None  # of filelock


_held: dict[Path, _Held] = {}
_changing = threading.RLock()  # file locks do not keep threads of one process apart


def real_path(path: str | Path) -> Path:
    """Return a path with its links resolved, even if they are circular or lead nowhere."""
    return Path(os.path.realpath(path))


def hold(folder: str | Path) -> Path:
    """Keep other runs out of a folder, created if missing, until the end of `releasing` or of this process.

    Returns its path with links resolved, which stays valid if a link to the folder is moved.

    Raises `InputError` if another run holds it.
    """
    folder = real_path(folder)
    with _changing:
        if folder in _held:
            if _held[folder].thread != threading.get_ident():
                raise _in_use(folder, "in another thread of this program")
            return folder
        was_made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        name, descriptor, lock = _lock(folder) if fcntl else _lock_by_filelock(folder)
        if lock is None:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        _held[folder] = _Held(was_made, threading.get_ident(), name, descriptor, lock)
    return folder


@contextmanager
def releasing() -> Iterator[None]:
    """Release the folders that were held in this block, or in a function with this decorator, when it ends."""
    earlier = set(_held)
    try:
        yield
    finally:
        for folder, held in list(_held.items()):
            if folder not in earlier and held.thread == threading.get_ident():
                with _changing:
                    _release(folder, _held.pop(folder))


def check_held(folder: Path) -> None:
    """Raise `InputError` if a folder that this process holds was removed or replaced, or a link leads out of it.

    Args:
        folder: the folder that is held, or one below it.
    """
    path = Path(os.path.abspath(folder))  # links are not followed
    target = real_path(path)
    for root, held in list(_held.items()):  # other threads hold and release folders meanwhile
        if root in (target, *target.parents) and not _is_there(root, held):
            raise InputError(f"{root} was removed or replaced while a run used it: run the same command again")
        if root in path.parents and target != path:
            raise InputError(f"{path} is a link, or behind one, but a run writes only into its own folder: remove it")


def _release(folder: Path, held: _Held) -> None:
    if held.lock is not None:
        held.lock.release()
    with suppress(OSError):  # what cannot be removed does no harm: a lock that no one holds keeps no one out
        if _is_there(folder, held):
            (folder / held.name).unlink()
            if held.was_made and not any(folder.iterdir()):  # it was not used
                folder.rmdir()
    if held.lock is None:
        os.close(held.descriptor)


def _lock(folder: Path) -> tuple[str, int, None]:
    """Lock a file in the folder; on a disk without locks, create one that no one else can create."""
    while True:
        descriptor = _open_own(folder / LOCK, os.O_CREAT)
        try:
            # locks for the process, not for the open file: a killed run's data loading workers would keep that lock
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read(descriptor)
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _in_use(folder, f"({holder or 'another process'})") from error
            (folder / LOCK).unlink(missing_ok=True)
            print(f"{folder}: this disk has no file locks; the file {OWNER} keeps other runs out", file=sys.stderr)
            return OWNER, _make_owner(folder), None
        if _is_same(folder / LOCK, descriptor):  # else its holder has just removed it
            return LOCK, descriptor, None
        os.close(descriptor)


def _make_owner(folder: Path) -> int:
    """Create the owner file of a folder, replacing one that a dead process of this machine has left."""
    path = folder / OWNER
    for _ in range(2):
        with suppress(FileExistsError):
            return _open_own(path, os.O_CREAT | os.O_EXCL)
        descriptor = _open_own(path)
        holder = _read(descriptor)
        os.close(descriptor)
        if not _has_ended(holder):
            break
        path.unlink(missing_ok=True)
    raise _in_use(folder, f"({holder or 'another process'}; if it has ended, remove {path})")


def _open_own(path: Path, flags: int = 0) -> int:
    """Open a file of our own. Anything else of that name is refused: its target or its content would be lost."""
    try:
        # do not wait for a pipe, or follow a link
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o666)
    except OSError as error:
        if error.errno in NOT_OURS:
            raise _not_ours(path) from error
        raise
    found = os.fstat(descriptor)
    content = _read(descriptor) if stat.S_ISREG(found.st_mode) else "other"
    if found.st_nlink > 1 or (content and not content.startswith("process ")):
        os.close(descriptor)
        raise _not_ours(path)
    return descriptor


def _read(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace")


def _has_ended(holder: str) -> bool:
    """Return whether a holder is a process of this machine that has ended."""
    found = HOLDER.fullmatch(holder)
    if found is None or found[2] != socket.gethostname():
        return False
    try:
        os.kill(int(found[1]), 0)
    except OSError as error:  # else the process is another user's
        return isinstance(error, ProcessLookupError)
    return False


def _lock_by_filelock(folder: Path) -> tuple[str, int, Any]:
    import filelock  # comes with torch

    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise _in_use(folder, "(another process)") from error
    return LOCK, -1, lock


def _in_use(folder: Path, by: str) -> InputError:
    return InputError(f"{folder} is in use by another run {by}: wait for it to end, or choose another `output`")


def _not_ours(path: Path) -> InputError:
    return InputError(f"{path} is not a lock file of codegrid: remove it, or choose another `output`")


def _is_there(folder: Path, held: _Held) -> bool:
    """Return whether the folder at a path is still the one that is held."""
    return held.lock is not None or _is_same(folder / held.name, held.descriptor)


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except OSError:
        return False
