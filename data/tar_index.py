"""What lies where in a tar file of samples: `webdataset` shards, or any tar file of pictures that is not compressed.

The members of a sample stand one behind the other and have names that are equal up to the first dot: `0001.jpg`,
`0001.cls`. A picture is a member whose name ends, after that dot, like a file of pictures. Its class is the text of the
member `.cls`: a number from 0, or a name. All other members are left out, and so is what is no plain file: links,
devices, holes.

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

MAX_HEADER = 2**20  # bytes that a tar file may hold in memory at once: names that are longer come from nobody
MAX_CLASS = 1000  # bytes of a class
CLASS = ".cls"
END = bytes(tarfile.BLOCKSIZE)
NO_FILES = "links and others"


class TarIndex(NamedTuple):
    """The pictures of a tar file, in its order."""

    names: list[str]  # (n) of the members
    offsets: np.ndarray  # (n,) int64, of the first byte
    sizes: np.ndarray  # (n,) int64, bytes
    classes: list[str]  # (n) texts, empty where there is none
    left_out: Counter[str]  # members by their ending
    damage: str  # why nothing was read from some place on; empty where all was

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values; `index_of_json` is the way back."""
        fields = self._asdict()
        return {**fields, "offsets": self.offsets.tolist(), "sizes": self.sizes.tolist()}


def index_of_json(fields: dict[str, Any]) -> TarIndex:
    """Return the index whose fields these are. Raises ValueError, TypeError or KeyError where they are no such."""
    names, classes, damage = fields["names"], fields["classes"], fields["damage"]
    offsets, sizes = (np.asarray(fields[name], dtype=np.int64) for name in ("offsets", "sizes"))
    texts = [*names, *classes, damage, *fields["left_out"]]
    if not all(type(text) is str for text in texts) or not len(names) == len(classes) == len(offsets) == len(sizes):
        raise ValueError("no index of a tar file")
    return TarIndex(names, offsets, sizes, classes, Counter(fields["left_out"]), damage)


def index_tar(path: Path) -> TarIndex:
    """Read the headers of a tar file. Where it is damaged, it has the samples before that place, but for the last one.

    Raises `InputError` where it is no plain file, or mostly holes, or where a sample has several pictures.
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
    """Name, place, size and class of each picture."""
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
            left_out["hidden"] += 1  # what some systems put beside each file
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
    """Go through the headers; nothing that they claim is believed."""
    place = 0
    with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
        while member := tar.next():
            tar.members = []  # or else it keeps them all
            if member.size < 0 or tar.offset <= place:
                raise tarfile.ReadError("it leads back to where it was read")
            place = tar.offset
            yield member
    file.seek(place)
    if file.read(len(END)) != END:  # tarfile takes any other end, and what is damaged, for one, too
        raise tarfile.ReadError(f"it is cut off or damaged at byte {place:,}")


class _Headers:
    """A file of which headers are read; the library takes what a header claims of names into memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _split(name: str) -> tuple[str, str]:
    """The key of a member's sample, and its ending in small letters."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return folder + slash + stem, (dot + ending).lower()
