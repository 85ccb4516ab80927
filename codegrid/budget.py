"""Memory checks for untrusted files: the sizes that a file claims are checked before any memory is allocated.

A few bytes can claim terabytes: equal numbers compress a thousandfold, and holes in a file take no disk space at all.
"""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from .errors import InputError

# where Linux shows the memory that a container may use: cgroup v2, and v1
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
HOLLOW = 64  # times a file's bytes on disk: no file system compresses that well
SMALL = 2**30  # bytes; they are read in a second or two, hollow or not


@cache
def machine_memory() -> int:
    """Return the bytes of memory that this machine has or this container may use; a terabyte if unknown."""
    limits = [2**40]
    with suppress(AttributeError, OSError, ValueError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # "max" is not a number
            limits.append(int(path.read_text()))
    return min(limit for limit in limits if limit > 0)


def in_words(count: int) -> str:
    """Return a number of bytes in words: `12 MB`, `3.4 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def check_memory(what: str, needed: int, remedy: str) -> None:
    """Raise `InputError` if `what`, a plural, would need more memory than this machine has."""
    memory = machine_memory()
    if needed > memory:
        raise InputError(f"{what} would take {needed:,} bytes, but this machine has {memory:,}: {remedy}")


def check_not_hollow(path: Path) -> None:
    """Raise `InputError` if a file is mostly holes: reading all of it could take days, for nothing."""
    status = path.stat()
    if status.st_size <= SMALL or not hasattr(status, "st_blocks") or not hasattr(os, "SEEK_HOLE"):
        return
    on_disk = 512 * status.st_blocks
    with path.open("rb") as file, suppress(OSError):  # not every file system supports SEEK_HOLE
        if on_disk * HOLLOW < status.st_size and os.lseek(file.fileno(), 0, os.SEEK_HOLE) < status.st_size:
            sizes = f"{status.st_size:,} bytes, of which only {on_disk:,} are on disk"
            raise InputError(f"{path} is damaged ({sizes}): copy or make it again")
