"""Tensors on disk, checked by SHA-256; checks of their values; and copying tensors from one model to another."""

import hashlib
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load, save

from .budget import check_not_hollow
from .codes import Codes, Layout
from .errors import InputError, reason_of
from .files import open_plain, read_plain
from .limits import short
from .strict_json import parse_json, to_json

MAX_JSON = 2**26  # bytes
MAX_HEADER = 100_000_000  # bytes, of a safetensors file
FLOATS = {torch.float16, torch.float32, torch.float64}
MAX_HALF = 65504  # the largest number of float16
MAX_DEPTH = 100  # levels of JSON
MAX_VALUE = 2.0  # of an image in [-1, 1]: decoders and sharp resizing go a little beyond
Rows = tuple[list[int], list[int]]  # rows of the new tensor, and the rows of the old one to copy into them


def sha256(content: bytes | numpy.ndarray) -> str:
    """Return the SHA-256 of bytes, or of a contiguous array, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()  # type: ignore[arg-type]


def digest_of(value: object) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys."""
    return sha256(to_json(value, sort_keys=True).encode())


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> str:
    """Write `tensors` as a safetensors file and return its SHA-256.

    Args:
        metadata: one key at most: the library writes several in any order, and equal tensors should give equal files.
    """
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
    with ThreadPoolExecutor(1) as aside:  # while it is written: neither holds the interpreter's lock
        checksum = aside.submit(sha256, content)
        path.write_bytes(content)  # plain Python I/O: a full disk raises an OSError that says so
        return checksum.result()


def read_tensors(
    path: Path, expected_sha256: str, like: dict[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Read a safetensors file whose bytes must have the given SHA-256.

    Args:
        like: tensors, perhaps on the meta device, whose names and shapes the file must have; the precision of floats
            may differ. A file too large for them is not read.
    """
    most = path.stat().st_size
    if like is not None:
        at_most = MAX_HEADER + sum(tensor.numel() * max(8, tensor.itemsize) for tensor in like.values())
        if most > at_most:
            raise InputError(f"{path} does not fit its config.json (it is too large): copy or make it again")
    check_not_hollow(path)
    content = read_plain(path, most)
    if sha256(content) != expected_sha256:
        raise InputError(f"{path} is damaged (its SHA-256 is not the recorded one): copy or make it again")
    try:
        tensors = load(content)
    except Exception as error:  # an unknown type raises a KeyError, for example
        raise InputError(f"{path} is not a safetensors file ({reason_of(error)}): copy or make it again") from error
    if like is not None:
        _check_likeness(path, tensors, like)
    return tensors


def _check_likeness(path: Path, tensors: dict[str, torch.Tensor], like: dict[str, torch.Tensor]) -> None:
    different = sorted(tensors.keys() ^ like.keys())
    if different:
        raise InputError(f"{path} does not fit its config.json ({short(different[0])}): copy or make it again")
    for name, expected in like.items():
        found = tensors[name]
        if found.shape != expected.shape:
            difference = f"{name} has the shape {list(found.shape)}, not {list(expected.shape)}"
            raise InputError(f"{path} does not fit its config.json ({difference}): copy or make it again")
        if found.dtype != expected.dtype and not {found.dtype, expected.dtype} <= FLOATS:
            raise InputError(f"{path}: {name} holds {found.dtype}, not {expected.dtype}: copy or make it again")


def as_saved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors on the CPU, floats in float32: loaded models compute in it."""
    return {
        name: tensor.detach().to("cpu", torch.float32) if tensor.is_floating_point() else tensor.detach().cpu()
        for name, tensor in tensors.items()
    }


def in_few_bytes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with floats in float16 if that changes no value of any, else as they are."""
    halves: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        halves[name] = tensor.half() if tensor.is_floating_point() else tensor
        if not torch.equal(halves[name].to(tensor.dtype), tensor):
            return tensors
    return halves


def check_finite(place: object, tensors: dict[str, torch.Tensor]) -> None:
    """Raise `InputError`, naming the tensor, if weights are infinite or not numbers."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            for bound in tensor.detach().aminmax():
                if not bound.isfinite():
                    raise InputError(
                        f"{place}: {name} holds {float(bound)}, but weights must be finite: train or copy it again"
                    )


def check_signal(name: str, images: torch.Tensor, made: str = "") -> tuple[float, float]:
    """Return the least and the largest value of images or sound, called `name`; 0 and 0 if there are none.

    Raises `InputError` if they cannot be floats in [-1, 1]; a decoder's output may go a little beyond. `made` says what
    makes such values.
    """
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise InputError(f"`{name}` holds {kind}: it must hold floats in [-1, 1]{made}")
    if not images.numel():
        return 0.0, 0.0
    least, largest = (float(value) for value in images.detach().aminmax())
    if not -MAX_VALUE <= least <= largest <= MAX_VALUE:  # true if one is not a number, too
        remedy = f"they must be in [-1, 1]{made}"
        raise InputError(f"`{name}` holds values from {least:.3g} to {largest:.3g}: {remedy}")
    return least, largest


def check_images(name: str, images: torch.Tensor) -> None:
    """Raise `InputError` if the values of images, called `name`, cannot be floats in [-1, 1].

    Images in 0 ... 1 only cause a warning: they could be very bright ones.
    """
    least, largest = check_signal(name, images, ", as codegrid.as_images makes them")
    if 0 <= least < largest <= 1:
        remedy = f"if these are images in 0 ... 1, use 2 * {name} - 1, which is in [-1, 1]"
        warnings.warn(f"`{name}` holds values from {least:.3g} to {largest:.3g}: {remedy}", stacklevel=3)


def check_codes(name: str, codes: Codes, layout: Layout, any_size: bool = False) -> None:
    """Raise `InputError`, calling them `name`, if these are not codes (b, *shape) of the grids of a layout.

    With `any_size`, the grids may have other sides.
    """
    if isinstance(codes, torch.Tensor) or len(codes) != len(layout):
        found = "one tensor" if isinstance(codes, torch.Tensor) else f"a tuple of {len(codes)}"
        raise InputError(f"`{name}` is {found}: it must be a tuple of {len(layout)}, a tensor for each grid")
    for number, (of_grid, grid) in enumerate(zip(codes, layout, strict=True)):
        said = f"`{name}` of grid {number}"
        if of_grid.dtype == torch.bool or of_grid.is_floating_point():
            raise InputError(f"{said} are {str(of_grid.dtype).removeprefix('torch.')}: they must be whole numbers")
        sides = tuple(of_grid.shape[1:])
        if len(sides) != len(grid.shape) if any_size else sides != grid.shape:
            axes = ("t", "hw", "thw")[len(grid.shape) - 1] if any_size else map(str, grid.shape)
            raise InputError(f"{said} have the shape {tuple(of_grid.shape)}, not (b, {', '.join(axes)})")
        if of_grid.numel():
            least, largest = int(of_grid.min()), int(of_grid.max())
            if not 0 <= least <= largest < grid.num_embeddings:
                code = largest if largest >= grid.num_embeddings else least
                raise InputError(f"{said}: code {code}, but its codes are 0 to {grid.num_embeddings - 1}")


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, read piece by piece.

    Raises `InputError` if it is mostly holes.
    """
    check_not_hollow(path)
    digest = hashlib.sha256()
    with open_plain(path) as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, no larger or deeper than this project writes."""
    content = read_plain(path, MAX_JSON)
    try:
        value = parse_json(content)
    except (ValueError, RecursionError) as error:  # wrong encoding is a ValueError, too
        raise InputError(f"{path} is damaged (not JSON): copy or make it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged (not a JSON object): copy or make it again")
    if not _is_flat(value):
        raise InputError(f"{path} is damaged (nested deeper than {MAX_DEPTH} levels): copy or make it again")
    return value


def _is_flat(value: object) -> bool:
    """Return whether a JSON value is flat enough to be walked through by recursion."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        children = (child for each in level for child in (each.values() if isinstance(each, dict) else each))
        level = [child for child in children if isinstance(child, dict | list)]
    return not level


@torch.no_grad()
def inherit_tensors(
    new: Mapping[str, torch.Tensor], old: Mapping[str, torch.Tensor], rows: Mapping[str, Rows]
) -> list[str]:
    """Copy tensors in place into those of the same name, where they fit. Returns, in words, what stays as it was.

    A tensor with more rows than the old one, such as a larger codebook, gets all of those and keeps its other rows.

    Args:
        new: the tensors to set.
        old: the tensors to copy.
        rows: which rows to copy into which, by tensor name, unless rows of equal index correspond.
    """
    fresh = []
    for name, tensor in new.items():
        source = old.get(name)
        if source is None or source.ndim != tensor.ndim or source.shape[1:] != tensor.shape[1:]:
            fresh.append(name)
        elif source.shape == tensor.shape and name not in rows:
            tensor.copy_(source)
        elif len(source) > len(tensor) and name not in rows:
            fresh.append(name)
        else:
            shared = list(range(len(source)))
            ours, theirs = rows.get(name, (shared, shared))
            tensor[ours] = source[theirs].to(tensor.dtype)
            if len(ours) < len(tensor):
                fresh.append(f"{len(tensor) - len(ours)} of {len(tensor)} rows of {name}")
    return fresh
