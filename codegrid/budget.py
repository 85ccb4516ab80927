"""A budget for what files of strangers ask for: what they claim is counted before anything is made of it.

A few bytes can claim terabytes: numbers that are equal pack a thousand to one, and holes in a file take no room on a
disk at all.
"""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from .errors import InputError

# the memory that a container may use, as Linux tells it: in its second version, and in its first
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
HOLLOW = 64  # times the bytes that a file has on the disk: no file system packs so well
SMALL = 2**30  # bytes that are read in a second or two, hollow or not


@cache
def machine_memory() -> int:
    """Return the bytes of memory that this machine has, or this container may use; a terabyte where that is unknown."""
    limits = [2**40]
    with suppress(AttributeError, OSError, ValueError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # "max" is not a number
            limits.append(int(path.read_text()))
    return min(limit for limit in limits if limit > 0)


def check_memory(what: str, needed: int, remedy: str) -> None:
    """Raise `InputError` where `what`, a plural, would take more bytes than this machine has memory."""
    memory = machine_memory()
    if needed > memory:
        raise InputError(f"{what} would take {needed:,} bytes, but this machine has {memory:,}: {remedy}")


def check_not_hollow(path: Path) -> None:
    """Raise `InputError` where a file is mostly holes: reading it to its end could take days, for nothing."""
    status = path.stat()
    if status.st_size <= SMALL or not hasattr(status, "st_blocks") or not hasattr(os, "SEEK_HOLE"):
        return
    on_disk = 512 * status.st_blocks
    with path.open("rb") as file, suppress(OSError):  # not every file system knows of holes
        if on_disk * HOLLOW < status.st_size and os.lseek(file.fileno(), 0, os.SEEK_HOLE) < status.st_size:
            sizes = f"{status.st_size:,} bytes, of which {on_disk:,} are on the disk"
            raise InputError(f"{path} is damaged ({sizes}): copy or make it again")
