"""Index of a tar file of samples: a `webdataset` shard, or any uncompressed tar file of pictures.

The members of a sample follow one another, and their names are equal up to the first dot: `0001.jpg`, `0001.cls`. A
picture is a member whose name has, after that dot, the ending of a picture file. Its class is the text of the member
`.cls`: a number from 0, or a name. All other members are left out, as is everything that is not a plain file: links,
devices, sparse files.

Shapes: n pictures of the file.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from codegrid.budget import check_not_hollow
from codegrid.errors import InputError, reason_of
from codegrid.files import open_plain

from .pictures import endings

MAX_HEADER = 2**20  # bytes of a header that are read into memory: no honest name is longer
MAX_CLASS = 1000  # bytes of a class
CLASS = ".cls"
END = bytes(tarfile.BLOCKSIZE)
NO_FILES = "links and others"


class TarIndex(NamedTuple):
    """The pictures of a tar file, in its order."""

    names: list[str]  # (n) of the members
    offsets: np.ndarray  # (n,) int64, of the first byte
    sizes: np.ndarray  # (n,) int64, bytes
    classes: list[str]  # (n) texts, empty if there is no class
    left_out: Counter[str]  # members by their ending
    damage: str  # why reading stopped early; empty if all was read

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, from which `index_of_json` rebuilds the index."""
        fields = self._asdict()
        return {**fields, "offsets": self.offsets.tolist(), "sizes": self.sizes.tolist()}


def index_of_json(fields: dict[str, Any]) -> TarIndex:
    """Return the index with these fields. Raises ValueError, TypeError or KeyError if they are invalid."""
    names, classes, damage = fields["names"], fields["classes"], fields["damage"]
    offsets, sizes = (np.asarray(fields[name], dtype=np.int64) for name in ("offsets", "sizes"))
    texts = [*names, *classes, damage, *fields["left_out"]]
    if not all(type(text) is str for text in texts) or not len(names) == len(classes) == len(offsets) == len(sizes):
        raise ValueError("not the index of a tar file")
    return TarIndex(names, offsets, sizes, classes, Counter(fields["left_out"]), damage)


def index_tar(path: Path) -> TarIndex:
    """Read the headers of a tar file. If it is damaged, the index has the samples before the damage, except the last.

    Raises `InputError` if it is not a plain file, is mostly holes, or has several pictures in one sample.
    """
    check_not_hollow(path)
    found: list[tuple[str, int, int, str]] = []
    left_out: Counter[str] = Counter()
    damage = ""
    try:
        with open_plain(path) as file:
            for sample in _samples(file, left_out):
                found.append(sample)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (tarfile.TarError, EOFError, OverflowError, RecursionError, ValueError) as error:
        damage = reason_of(error)
    numbers = np.array([sample[1:3] for sample in found], dtype=np.int64).reshape(-1, 2)
    names, classes = [sample[0] for sample in found], [sample[3] for sample in found]
    return TarIndex(names, numbers[:, 0].copy(), numbers[:, 1].copy(), classes, left_out, damage)


def _samples(file: BinaryIO, left_out: Counter[str]) -> Iterator[tuple[str, int, int, str]]:
    """Yield the name, place, size and class of each picture."""
    known = endings()
    key, picture, text = "", None, ""
    for member in _members(file):
        of_key, ending = _split(member.name)
        if of_key != key:
            if picture:
                yield *picture, text
            key, picture, text = of_key, None, ""
        if not member.isreg() or member.issparse():
            left_out[NO_FILES] += not member.isdir()
        elif PurePosixPath(member.name).name.startswith("."):
            left_out["hidden"] += 1  # some systems add one to each file
        elif ending in known:
            if picture:
                raise InputError(f"one sample has {picture[0]} and {member.name}: leave one of them out")
            picture = (member.name, member.offset_data, member.size)
        elif ending == CLASS and member.size <= MAX_CLASS:
            file.seek(member.offset_data)
            text = file.read(member.size).decode(errors="surrogateescape").strip()
        else:
            left_out[ending or "no ending"] += 1
    if picture:
        yield *picture, text


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file, without trusting what their headers claim."""
    place = 0
    with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
        while member := tar.next():
            tar.members = []  # otherwise it keeps them all
            if member.size < 0 or tar.offset <= place:
                raise tarfile.ReadError("a header leads back to an earlier one")
            place = tar.offset
            yield member
    file.seek(place)
    if file.read(len(END)) != END:  # tarfile also accepts other ends, and damage, as the end
        raise tarfile.ReadError(f"it is cut off or damaged at byte {place:,}")


class _Headers:
    """A file that refuses huge reads: the library reads names into memory, of whatever length a header claims."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _split(name: str) -> tuple[str, str]:
    """Return the key of a member's sample, and its ending in lower case."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return folder + slash + stem, (dot + ending).lower()
