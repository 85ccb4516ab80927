"""Captions of pictures: tables that give each file of a folder its texts, and columns of texts in code datasets.

A table is a .csv, .tsv or .jsonl file with a column of file names and a column of texts; a picture may have several
rows, and a row of JSON a list of texts.

Shapes: n pictures.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from codegrid.errors import InputError, reason_of
from codegrid.file_names import printable
from codegrid.files import read_plain
from codegrid.limits import short
from codegrid.noise import Noise
from codegrid.strict_json import parse_json

from .codes import CodeBatch
from .manifest import CAPTIONS, CodeHeader
from .videos import WindowBatch

ENDINGS = (".csv", ".tsv", ".jsonl")
# names of columns, the preferred ones first
OF_FILES = ("file_name", "filename", "file", "image", "image_name", "image_path", "path", "picture")
OF_TEXTS = ("text", "caption", "captions", "texts", "prompt", "description", "comment")
DELIMITERS = ",;\t|"
MAX_BYTES = 2**30  # of a table
MAX_CAPTIONS = 100  # of a picture: a code dataset has as many places for each
NO_PICTURE = "captions that match no picture"

Texts = tuple[str, ...]  # the captions of a picture


class Matched(NamedTuple):
    """Captions by picture, and the names in the table that match none."""

    captions: list[Texts]  # (n)
    left_out: Counter[str]  # names that match no picture

    def without(self) -> int:
        """Return the number of pictures without a caption."""
        return sum(not texts for texts in self.captions)


def read_captions(path: str | Path) -> dict[str, Texts]:
    """Return the captions in a table by file name, in its order, each once; empty ones are left out.

    Raises `InputError` if the file cannot be read, or lacks a column.
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS or not path.is_file():
        raise InputError(f"`captions` {short(str(path))}: give an existing file {' '.join(ENDINGS)}")
    try:
        text = read_plain(path, MAX_BYTES).decode("utf-8-sig")
        rows = list(_read_json(path, text) if path.suffix.lower() == ".jsonl" else _read_table(path, text))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a table of captions in UTF-8 ({reason_of(error)}): save it again") from error
    found: dict[str, dict[str, None]] = {}
    for name, caption in rows:
        words = " ".join(caption.split())
        if words:
            found.setdefault(name.strip().replace("\\", "/").removeprefix("./"), {})[words] = None
    if not found:
        raise InputError(f"{path} holds no captions: give each picture a row")
    return {name: tuple(texts) for name, texts in found.items()}


def _read_table(path: Path, text: str) -> Iterator[tuple[str, str]]:
    csv.field_size_limit(MAX_BYTES)
    head = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(DELIMITERS, key=head.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    names = [name.strip().lower() for name in next(rows, [])]
    of_file, of_text = (names.index(_choose(path, names, known)) for known in (OF_FILES, OF_TEXTS))
    for number, row in enumerate(rows, 2):
        if row and len(row) <= max(of_file, of_text):
            raise InputError(f"{path}, row {number}: {len(row)} columns, but there are {len(names)}: fill them all")
        if row:
            yield row[of_file], row[of_text]


def _read_json(path: Path, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number} is not JSON ({reason_of(error)}): write an object in it"
            ) from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} {short(row)}: it must be an object")
        name, texts = (row[_choose(path, list(row), known)] for known in (OF_FILES, OF_TEXTS))
        texts = texts if isinstance(texts, list) else [texts]
        if not isinstance(name, str) or not all(isinstance(each, str) for each in texts):
            raise InputError(f"{path}, line {number}: a file name, and a text or a list of texts, are needed")
        yield from ((name, each) for each in texts)


def _choose(path: Path, names: Sequence[str], known: Sequence[str]) -> str:
    """Return the preferred one of some columns."""
    for name in known:
        if name in names:
            return name
    found = ", ".join(printable(name)[:40] for name in names[:10])
    raise InputError(f"{path} has the columns {found}, but none of {', '.join(known)}: give it one, in its first row")


def match_captions(path: str | Path, root: Path, files: Sequence[str]) -> Matched:
    """Return the captions that a table gives the pictures of a folder.

    Args:
        path: the table.
        root: the folder, for messages.
        files: (n) paths of all its pictures, relative to it; a table may leave out the folders if that is clear.

    Raises `InputError` if it names no picture, or a name stands for several.
    """
    written = read_captions(path)
    places = {file: number for number, file in enumerate(files)}
    by_name: dict[str, list[int]] = {}
    for number, file in enumerate(files):
        by_name.setdefault(PurePosixPath(file).name, []).append(number)
    captions: list[Texts] = [()] * len(files)
    unmatched: Counter[str] = Counter()
    for name, texts in written.items():
        found = [places[name]] if name in places else by_name.get(name, [])
        if len(found) > 1:
            both = " and ".join(files[number] for number in found[:2])
            raise InputError(f"{path}: {printable(name)} may be {both}: write the folder, too")
        if not found:
            unmatched[name] += len(texts)
            continue
        joined = tuple(dict.fromkeys(captions[found[0]] + texts))
        if len(joined) > MAX_CAPTIONS:
            raise InputError(f"{path}: {printable(name)} has {len(joined)} captions: give it at most {MAX_CAPTIONS}")
        captions[found[0]] = joined
    if not any(captions):
        names = ", ".join(map(printable, list(unmatched)[:3]))
        words = f"none of its {len(unmatched):,} names is a picture in {root} ({names}): write them like {files[0]}"
        raise InputError(f"`captions` {path}: {words}")
    return Matched(captions, unmatched)


def notes_on(captions: Sequence[Texts]) -> tuple[str, ...]:
    """Return what is worth knowing of the captions of some pictures."""
    without = sum(not texts for texts in captions)
    several = max(map(len, captions), default=0)
    told = [f"captions: {sum(map(len, captions)):,}" + f", up to {several} an image" * (several > 1)]
    return tuple(told + [f"{without:,} images without a caption"] * (without > 0))


def as_column(captions: Sequence[Texts], places: int) -> list[list[str]]:
    """Return captions as a column of a code dataset: as many for each picture, empty after its own."""
    return [[*texts, *[""] * (places - len(texts))] for texts in captions]


def places_in(header: CodeHeader) -> int:
    """Return the number of captions that a code dataset has room for, of each image; 0 if it has no captions."""
    column: dict[str, Any] = header.columns.get(CAPTIONS, {})
    return column["shape"][0] if column.get("kind") == "text" and len(column["shape"]) == 1 else 0


def choose_captions(batch: CodeBatch | WindowBatch, noise: Noise | None = None) -> list[str] | None:
    """Return a caption of each image of a batch, empty where it has none; None without captions.

    It is the first one, or, given noise, any at random.
    """
    column: Any = batch.columns.get(CAPTIONS)
    if column is None:
        return None
    shares = [0.0] * len(column) if noise is None else noise.uniforms("caption").tolist()
    rows = ([text for text in texts if text] or [""] for texts in column)
    return [texts[int(share * len(texts))] for texts, share in zip(rows, shares, strict=True)]
