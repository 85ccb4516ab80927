"""The file of compressed images or codes.

MAGIC, a byte with the version, the length of the header in four bytes, the header in JSON, the names and shapes of the
images in JSON compressed by zlib, the stream of the coder, and the SHA-256 of everything before it. Numbers are
little-endian.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import asdict, dataclass
from typing import Annotated, NamedTuple

from codegrid.errors import InputError
from codegrid.limits import MAX_SIDE, MAX_THREADS, BatchSize, Range, is_list_of, make_options
from codegrid.strict_json import parse_json, to_json

MAGIC, VERSION = b"CODEGRID", 1  # the version of everything that a stream depends on
DIGEST = 32  # bytes of a SHA-256
LENGTH = 4  # bytes of the header's length
MOST_IMAGES = 10**8
MOST_TOLD = 2**30  # bytes of names and shapes, unpacked

CHANGED = "came out otherwise than they went in: decompress on the kind of machine where it was made"

Count = Annotated[int, Range(0, 2**62)]
Coefficient = Annotated[int, Range(-(2**20), 2**20)]


@dataclass(frozen=True)
class Header:
    """What a stream depends on, and what it must come out as."""

    codegrid: str  # the version that wrote it, for people
    images: Annotated[int, Range(1, MOST_IMAGES)]
    tokenizer: str  # fingerprint
    priors: tuple[str, ...]  # fingerprints, coarse to fine
    labels: bool  # whether the stream begins with labels
    chunk: BatchSize  # images whose symbols follow one another at each step
    backend: str
    machine: str  # the kind of processor and so on; empty if it makes no difference
    batch_size: BatchSize
    threads: Annotated[int, Range(1, MAX_THREADS)]
    codes: str  # SHA-256 of codes and labels
    told: Count  # bytes of names and shapes
    stream: Count  # bytes
    predicted: str = ""  # SHA-256 of the predicted pixels; empty without pixels
    pixels: str = ""  # SHA-256 of the pixels
    coefficients: tuple[Coefficient, ...] = ()  # of the linear prediction of pixels, channel after channel


class Parts(NamedTuple):
    """The content of a file."""

    header: Header
    names: list[str] | None  # of the images' files
    shapes: list[tuple[int, ...]] | None  # (c, H, W) of each image; None: they are the tokenizer's
    stream: bytes


def tell(names: list[str] | None, shapes: list[tuple[int, ...]] | None) -> bytes:
    """Return names and shapes in as few bytes as zlib makes of them; none if there are neither."""
    return b"" if names is None and shapes is None else zlib.compress(to_json([names, shapes]).encode(), 9)


def join(header: Header, told: bytes, stream: bytes) -> bytes:
    """Return the bytes of a file."""
    head = to_json(asdict(header), separators=(",", ":")).encode()
    content = MAGIC + bytes([VERSION]) + len(head).to_bytes(LENGTH, "little") + head + told + stream
    return content + hashlib.sha256(content).digest()


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
    body, digest = content[:-DIGEST], content[-DIGEST:]
    if len(content) < start + LENGTH + DIGEST or hashlib.sha256(body).digest() != digest:
        raise InputError(f"{source} is damaged or cut (its SHA-256 is not the recorded one): copy or make it again")
    try:
        begin = start + LENGTH
        end = begin + int.from_bytes(body[start:begin], "little")
        header: Header = make_options(Header, parse_json(body[begin:end]), "a compressed file")
        told, stream = body[end : end + header.told], body[end + header.told :]
        if end > len(body) or len(stream) != header.stream:
            raise ValueError("its parts are of other lengths")
        return Parts(header, *_read_told(told, header.images), stream)
    except Exception as error:  # forged: strange JSON raises many types of errors
        raise InputError(f"{source} is damaged (its header is not one): make it again") from error


def _read_told(content: bytes, count: int) -> tuple[list[str] | None, list[tuple[int, ...]] | None]:
    if not content:
        return None, None
    unpacker = zlib.decompressobj()
    names, shapes = parse_json(unpacker.decompress(content, MOST_TOLD))
    is_right = names is None or (is_list_of(names, str) and len(names) == count)
    if shapes is not None:
        is_right = is_right and is_list_of(shapes, list) and len(shapes) == count and all(map(_is_shape, shapes))
        shapes = [tuple(shape) for shape in shapes]
    if unpacker.unconsumed_tail or not is_right:
        raise ValueError("these are not the names and shapes of the images")
    return names, shapes


def _is_shape(shape: list[object]) -> bool:
    if not is_list_of(shape, int) or len(shape) != 3 or shape[0] not in (1, 3):
        return False
    return all(1 <= side <= MAX_SIDE for side in shape[1:])  # type: ignore[operator]
