"""Index of a tar file of samples: a `webdataset` shard, or any uncompressed tar file of pictures.

The members of a sample follow one another, and their names are equal up to the first dot: `0001.jpg`, `0001.cls`. A
picture is a member whose name has, after that dot, the ending of a picture file. Its class is the text of the member
`.cls`: a number from 0, or a name. Its captions are the text of the member `.txt`, and a text or a list of texts in the
object in `.json`, by a name such as `caption`. All other members are left out, as is everything that is not a plain
file: links, devices, sparse files.

Shapes: n pictures of the file.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from codegrid.budget import check_not_hollow
from codegrid.errors import InputError, reason_of
from codegrid.files import open_plain
from codegrid.strict_json import parse_json

from .captions import MAX_CAPTIONS, OF_TEXTS, Texts
from .pictures import endings

MAX_HEADER = 2**20  # bytes of a header that are read into memory: no honest name is longer
MAX_CLASS = 1000  # bytes of a class
MAX_TEXTS = 2**20  # bytes of a member with captions
CLASS, TEXT, JSON = ".cls", ".txt", ".json"
END = bytes(tarfile.BLOCKSIZE)
NO_FILES = "links and others"


class TarIndex(NamedTuple):
    """The pictures of a tar file, in its order."""

    names: list[str]  # (n) of the members
    offsets: np.ndarray  # (n,) int64, of the first byte
    sizes: np.ndarray  # (n,) int64, bytes
    classes: list[str]  # (n) texts, empty if there is no class
    captions: list[Texts]  # (n)
    left_out: Counter[str]  # members by their ending
    damage: str  # why reading stopped early; empty if all was read

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, from which `index_of_json` rebuilds the index."""
        fields = self._asdict()
        return {**fields, "offsets": self.offsets.tolist(), "sizes": self.sizes.tolist()}


def index_of_json(fields: dict[str, Any]) -> TarIndex:
    """Return the index with these fields. Raises ValueError, TypeError or KeyError if they are invalid."""
    names, classes, damage = fields["names"], fields["classes"], fields["damage"]
    captions = [tuple(texts) for texts in fields["captions"]]
    offsets, sizes = (np.asarray(fields[name], dtype=np.int64) for name in ("offsets", "sizes"))
    texts = [*names, *classes, *chain(*captions), damage, *fields["left_out"]]
    lengths = {len(each) for each in (names, classes, captions, offsets, sizes)}
    if not all(type(text) is str for text in texts) or len(lengths) > 1:
        raise ValueError("not the index of a tar file")
    return TarIndex(names, offsets, sizes, classes, captions, Counter(fields["left_out"]), damage)


def index_tar(path: Path) -> TarIndex:
    """Read the headers of a tar file. If it is damaged, the index has the samples before the damage, except the last.

    Raises `InputError` if it is not a plain file, is mostly holes, or has several pictures in one sample.
    """
    check_not_hollow(path)
    found: list[_Sample] = []
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
    places = np.array([(sample.offset, sample.size) for sample in found], dtype=np.int64).reshape(-1, 2)
    names, classes = [sample.name for sample in found], [sample.text for sample in found]
    captions = [sample.captions for sample in found]
    return TarIndex(names, places[:, 0].copy(), places[:, 1].copy(), classes, captions, left_out, damage)


class _Sample(NamedTuple):
    """A picture."""

    name: str
    offset: int
    size: int
    text: str  # its class
    captions: Texts


def _samples(file: BinaryIO, left_out: Counter[str]) -> Iterator[_Sample]:
    """Yield each picture."""
    known = endings()
    key, picture, text, captions = "", None, "", dict[str, None]()
    for member in _members(file):
        if PurePosixPath(member.name).name.startswith("."):
            left_out["hidden"] += member.isreg()  # some systems add one to each file, and before it
            continue
        of_key, ending = _split(member.name)
        if of_key != key:
            if picture:
                yield _Sample(*picture, text, tuple(captions)[:MAX_CAPTIONS])
            key, picture, text, captions = of_key, None, "", {}
        if not member.isreg() or member.issparse():
            left_out[NO_FILES] += not member.isdir()
        elif ending in known:
            if picture:
                raise InputError(f"one sample has {picture[0]} and {member.name}: leave one of them out")
            picture = (member.name, member.offset_data, member.size)
        elif ending == CLASS and member.size <= MAX_CLASS:
            file.seek(member.offset_data)
            text = file.read(member.size).decode(errors="surrogateescape").strip()
        elif found := _read_captions(file, member, ending):
            captions |= dict.fromkeys(found)
        else:
            left_out[ending or "no ending"] += 1
    if picture:
        yield _Sample(*picture, text, tuple(captions)[:MAX_CAPTIONS])


def _read_captions(file: BinaryIO, member: tarfile.TarInfo, ending: str) -> list[str]:
    """Return the captions in a member, each in one line; none if it is not one with captions."""
    if ending not in (TEXT, JSON) or member.size > MAX_TEXTS:
        return []
    file.seek(member.offset_data)
    content: Any = file.read(member.size).decode(errors="replace")
    if ending == JSON:
        try:
            found = parse_json(content)
        except (ValueError, RecursionError):
            return []
        fields = found if isinstance(found, dict) else {}
        content = next((fields[name] for name in OF_TEXTS if name in fields), "")
    texts = content if isinstance(content, list) else [content]
    return [words for text in texts if isinstance(text, str) and (words := " ".join(text.split()))]


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
