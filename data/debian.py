"""Files of Debian packages, read one after the other into memory; nothing is unpacked.

A package (.deb) is an `ar` archive whose member `data.tar`, perhaps compressed, holds the files.
"""

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from codegrid.errors import InputError, reason_of
from codegrid.files import open_plain

PACKAGE = ".deb"
MAGIC, HEADER = b"!<arch>\n", 60  # of an ar archive: its first bytes, and the bytes of a member's header
MAX_NAMES = 2**20  # bytes of a tar header: no honest name is longer
OPENERS: dict[str, Callable[[Any], Any]] = {
    "data.tar": lambda file: file, "data.tar.xz": lzma.open, "data.tar.gz": gzip.open, "data.tar.bz2": bz2.open,
}  # fmt: skip
DAMAGE = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError)


class Member(NamedTuple):
    """A file in a package."""

    path: PurePosixPath
    content: bytes


def read_package(path: Path, most_of: Callable[[PurePosixPath], int]) -> Iterator[Member]:
    """Yield the wanted plain files of a package, in its order. Links and the like are passed over.

    Args:
        path: the package.
        most_of: a file's path → the most bytes that it may have, 0 if it is not wanted.

    Raises `InputError` if it is damaged, compressed in a way that Python cannot read, or a file in it is too large.
    """
    with open_plain(path) as file:
        name, data = _find_data(path, file)
        try:
            budget = _Budget(OPENERS[name](data))
            with tarfile.open(fileobj=budget, mode="r|") as tar:  # type: ignore[call-overload]
                while member := tar.next():
                    tar.members = []  # otherwise it keeps them all
                    budget.left = MAX_NAMES + member.size  # for its content and the next header
                    place = PurePosixPath(member.name)
                    if not member.isreg() or member.issparse() or not (most := most_of(place)):
                        continue
                    if member.size > most:
                        raise InputError(f"{path}: {place} has {member.size:,} bytes, at most {most:,} are read")
                    content = tar.extractfile(member)
                    yield Member(place, content.read() if content else b"")
        except InputError:
            raise
        except DAMAGE as error:
            raise InputError(f"{path} is damaged ({reason_of(error)}): copy it again") from error


def _find_data(path: Path, file: BinaryIO) -> tuple[str, BinaryIO]:
    """Return the name of the member that holds the files, and its bytes as a file."""
    if file.read(len(MAGIC)) != MAGIC:
        raise InputError(f"{path} is not a Debian package: give a .deb file, or a folder of sound files")
    while len(header := file.read(HEADER)) == HEADER:
        name, digits = header[:16].decode("latin-1").strip().rstrip("/"), header[48:58].strip()
        if not digits.isdigit():
            break
        size = int(digits)
        if name in OPENERS:
            return name, io.BufferedReader(_Part(file, size))
        if name.startswith("data.tar"):
            known = ", ".join(OPENERS)
            raise InputError(f"{path} holds {name}, but only {known} are read: unpack it, and give the folder")
        file.seek(size + size % 2, io.SEEK_CUR)
    raise InputError(f"{path} is damaged (no member data.tar): copy it again")


class _Part(io.RawIOBase):
    """The next bytes of a file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer, as `io` requires."""
        content = self.file.read(min(len(buffer), self.left))
        buffer[: len(content)] = content
        self.left -= len(content)
        return len(content)


class _Budget:
    """A file from which no more than `left` is read: the names in headers are kept, however long they claim to be."""

    def __init__(self, file: Any) -> None:
        self.file, self.left = file, MAX_NAMES

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < -tarfile.RECORDSIZE:
            raise tarfile.ReadError("a header of more than a million bytes")
        return self.file.read(size)
