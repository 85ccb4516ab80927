"""The file of compressed images or codes.

MAGIC, a byte with the version, two lengths in four bytes each, the header and then the names and shapes of the images,
both in JSON compressed by zlib, the stream of the coder, and the first bytes of the SHA-256 of everything before it.
Numbers are little-endian. A thousand digits take 20 kB: the rest should be less than a hundredth of that.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, fields
from typing import Annotated, Any, NamedTuple

from codegrid.errors import InputError
from codegrid.limits import MAX_SIDE, MAX_THREADS, BatchSize, Range, is_list_of, make_options
from codegrid.strict_json import parse_json, to_json

MAGIC, VERSION = b"CODEGRID", 1  # the version of everything that a stream depends on
DIGEST = 16  # bytes of a SHA-256 that are kept
LENGTH = 4  # bytes of a length
MOST_IMAGES = 10**8
MOST_TOLD = 2**30  # bytes of JSON, unpacked

CHANGED = "are not those that went in: decompress it on the kind of machine where it was made"

Coefficient = Annotated[int, Range(-(2**20), 2**20)]


@dataclass(frozen=True)
class Header:
    """Facts that a stream depends on, and digests of its content. Fields with their default are not written."""

    images: Annotated[int, Range(1, MOST_IMAGES)]
    tokenizer: str  # the beginning of its fingerprint
    priors: tuple[str, ...]  # the same of each, coarse to fine
    codes: str  # the beginning of the SHA-256 of codes and labels
    labels: bool = False  # whether the stream begins with labels
    chunk: BatchSize = 1024  # images whose symbols follow one another at each step
    backend: str = "native"
    machine: str = ""  # the kind of processor and so on; empty if it makes no difference
    batch_size: BatchSize = 256
    threads: Annotated[int, Range(1, MAX_THREADS)] = 1
    predicted: str = ""  # SHA-256 of the predicted pixels; empty without pixels
    pixels: str = ""  # SHA-256 of the pixels
    coefficients: tuple[Coefficient, ...] = ()  # of the linear prediction of pixels, channel after channel


def short(digest: str) -> str:
    """Return the beginning of a digest in hexadecimal, of as many bytes as are kept."""
    return digest[: 2 * DIGEST]


class Parts(NamedTuple):
    """The content of a file."""

    header: Header
    names: list[str] | None  # of the images' files
    shapes: list[tuple[int, ...]] | None  # (c, H, W) of each image; None: they are the tokenizer's
    stream: bytes


def join(header: Header, names: list[str] | None, shapes: list[tuple[int, ...]] | None, stream: bytes) -> bytes:
    """Return the bytes of a file; see `Parts`."""
    written = {item.name: getattr(header, item.name) for item in fields(header)}
    written = {item.name: written[item.name] for item in fields(header) if written[item.name] != item.default}
    parts = [_squeeze(written), b"" if names is None and shapes is None else _squeeze([names, shapes])]
    lengths = b"".join(len(part).to_bytes(LENGTH, "little") for part in parts)
    content = b"".join([MAGIC, bytes([VERSION]), lengths, *parts, stream])
    return content + hashlib.sha256(content).digest()[:DIGEST]


def split(content: bytes, source: str) -> Parts:
    """Return the parts of a file. `source` is its name for messages.

    Raises `InputError` if it is not such a file, or of another version, or not whole.
    """
    if not content.startswith(MAGIC):
        raise InputError(f"{source} is not a file of `codegrid compress`: give one")
    start = len(MAGIC) + 1
    if len(content) >= start and content[start - 1] != VERSION:
        words = f"it has version {content[start - 1]} of the format, and this is version {VERSION}"
        raise InputError(f"{source}: {words}: decompress it with the codegrid that wrote it")
    body, digest, begin = content[:-DIGEST], content[-DIGEST:], start + 2 * LENGTH
    if len(body) < begin or hashlib.sha256(body).digest()[:DIGEST] != digest:
        raise InputError(f"{source} is damaged or cut (its SHA-256 is not the recorded one): copy or make it again")
    try:
        of_header, of_told = (int.from_bytes(body[at : at + LENGTH], "little") for at in (start, start + LENGTH))
        middle, end = begin + of_header, begin + of_header + of_told
        if end > len(body):
            raise ValueError("its parts are longer than the file")
        header: Header = make_options(Header, _unsqueeze(body[begin:middle]), "a compressed file")
        return Parts(header, *_read_told(body[middle:end], header.images), body[end:])
    except Exception as error:  # forged: strange JSON raises many types of errors
        raise InputError(f"{source} is damaged (its header cannot be read): make it again") from error


def _squeeze(value: object) -> bytes:
    return zlib.compress(to_json(value, separators=(",", ":")).encode(), 9)


def _unsqueeze(content: bytes) -> Any:
    unpacker = zlib.decompressobj()
    value = parse_json(unpacker.decompress(content, MOST_TOLD))
    if unpacker.unconsumed_tail:
        raise ValueError("it would be too large")
    return value


def _read_told(content: bytes, count: int) -> tuple[list[str] | None, list[tuple[int, ...]] | None]:
    if not content:
        return None, None
    names, shapes = _unsqueeze(content)
    is_right = names is None or (is_list_of(names, str) and len(names) == count)
    if shapes is not None:
        is_right = is_right and is_list_of(shapes, list) and len(shapes) == count and all(map(_is_shape, shapes))
        shapes = [tuple(shape) for shape in shapes]
    if not is_right:
        raise ValueError("these are not the names and shapes of the images")
    return names, shapes


def _is_shape(shape: list[object]) -> bool:
    if not is_list_of(shape, int) or len(shape) != 3 or shape[0] not in (1, 3):
        return False
    return all(1 <= side <= MAX_SIDE for side in shape[1:])  # type: ignore[operator]
