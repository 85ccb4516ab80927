"""Images in array files: as saved by MedMNIST, Keras or Codegrid's samplers, or plain arrays.

Images are (n, H, W), (n, H, W, c) or (n, c, H, W) with 1 or 3 channels c; whole numbers 0 ... 255, floats 0 ... 1 or
0 ... 255, or bools. Labels are (n,) or (n, 1): class numbers, or names. Ambiguous arrays are refused. A validation
part is read if there is no test part.

Shapes: n images, c channels, H W image.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import numpy as np

from codegrid.errors import InputError
from codegrid.limits import MAX_CLASSES

from .images import CHANNELS
from .npz import read_npy, read_npz

# the names of images and labels, of the training part and of the test part
PARTS = (
    (("train_images", "train_labels"), ("test_images", "test_labels")),
    (("train_images", "train_labels"), ("val_images", "val_labels")),
    (("x_train", "y_train"), ("x_test", "y_test")),
    (("x_train", "y_train"), ("x_val", "y_val")),
)
WHOLES = (
    ("arr_0", "arr_1"), ("images", "labels"), ("x", "y"), ("x_train", "y_train"), ("train_images", "train_labels"),
)  # fmt: skip
AT_ONCE = 1024  # images converted at once


class LabelledImages(NamedTuple):
    """Images of one part, with their classes."""

    images: np.ndarray  # (n, H, W, c) uint8
    labels: np.ndarray | None  # (n,) int64
    classes: list[str]  # the name of each label; empty if there are no labels


def read_images(path: Path) -> dict[str, LabelledImages]:
    """Return the parts of an array file, .npz or .npy: `train` and `test`, or `all` if it has no parts.

    Raises `InputError`, naming the array, if one cannot be read or is ambiguous.
    """
    arrays = {"": read_npy(path)} if path.suffix.lower() == ".npy" else read_npz(path)
    names = _choose_names(path, arrays)
    images = {part: _check_shape(_said(path, name), arrays[name]) for part, (name, _) in names.items()}
    scale = _scale_of(path, {names[part][0]: array for part, array in images.items()})
    labels = {part: name for part, (_, name) in names.items() if name is not None and name in arrays}
    classes, numbers = _number_labels(path, arrays, labels, {part: len(array) for part, array in images.items()})
    return {part: LabelledImages(_as_bytes(images[part], scale), numbers[part], classes) for part in names}


def holds_floats(path: Path) -> bool:
    """Return whether the images of an array file, .npz or .npy, are not stored as whole numbers."""
    arrays = {"": read_npy(path)} if path.suffix.lower() == ".npy" else read_npz(path)
    return any(arrays[name].dtype.kind == "f" for name, _ in _choose_names(path, arrays).values())


def names_left_out(path: Path) -> Counter[str]:
    """Return the names of the arrays in a file, .npz or .npy, that `read_images` does not read."""
    if path.suffix.lower() == ".npy":
        return Counter()
    with ZipFile(path) as file:
        names = [name.removesuffix(".npy") for name in file.namelist()]
    read = {name for part in _choose_names(path, names).values() for name in part}
    return Counter(name for name in names if name not in read)


def _said(path: Path, name: str) -> str:
    """Return the name of an array in a file, for messages."""
    return f"{path}: {name}" if name else str(path)


def _choose_names(path: Path, arrays: Collection[str]) -> dict[str, tuple[str, str | None]]:
    """Return the names of the images and the labels of each part."""
    for train, test in PARTS:
        if train[0] in arrays and test[0] in arrays:
            return {"train": train, "test": test}
    for names in WHOLES:
        if names[0] in arrays:
            return {"all": names}
    if len(arrays) == 1:
        return {"all": (next(iter(arrays)), None)}
    known = ", ".join(dict.fromkeys(names[0] for names in WHOLES))
    raise InputError(f"{path} holds {', '.join(arrays) or 'no arrays'}: name the images one of {known}")


def _check_shape(said: str, images: np.ndarray) -> np.ndarray:
    """Return images as (n, H, W, c)."""
    shape = images.shape
    has_pixels = 0 not in shape[1:]
    if images.ndim == 3 and has_pixels and shape[2] not in (3, 4):
        return images[..., None]
    if images.ndim == 4 and has_pixels:
        last, first = shape[3] in CHANNELS, shape[1] in CHANNELS
        if last and not (first and shape[3] == shape[1] == 3):
            return images
        if first and not last:
            return images.transpose(0, 2, 3, 1)
    words = "images are (n, H, W), (n, H, W, c) or (n, c, H, W), with 1 or 3 channels c"
    may_be_one = ", and this may be a single picture" if images.ndim == 3 else ""
    raise InputError(f"{said} has the shape {shape}: {words}{may_be_one}")


def _scale_of(path: Path, images: Mapping[str, np.ndarray]) -> float:
    """Return the factor that brings the values of all image arrays, given by name, to 0 ... 255."""
    all_said = _said(path, " and ".join(images))
    if all(array.dtype == bool for array in images.values()):
        return 255.0
    largest = 0.0
    for name, array in images.items():
        if array.dtype.kind not in "iuf":
            raise InputError(f"{_said(path, name)} is of type {array.dtype}: images are whole numbers, floats or bools")
        for first in range(0, len(array), AT_ONCE):
            low, high = (float(edge(array[first : first + AT_ONCE])) for edge in (np.min, np.max))
            if not (low >= 0 and high <= 255):  # NaN fails both tests
                outlier = low if not low >= 0 else high
                words = "images are 0 ... 255, or floats 0 ... 1; convert it first"
                raise InputError(f"{_said(path, name)} holds {outlier:g}: {words}")
            largest = max(largest, high)
    is_float = {array.dtype.kind == "f" for array in images.values()}
    if len(is_float) > 1:
        raise InputError(f"{all_said} are of different types: convert them to one")
    if is_float == {True} and largest <= 1:
        return 255.0
    if (0 < largest <= 1) or (is_float == {True} and largest < 2):
        words = "which is neither 0 ... 1 as floats nor 0 ... 255: multiply or clip it first"
        raise InputError(f"{all_said}: the largest value is {largest:g}, {words}")
    return 1.0


def _as_bytes(images: np.ndarray, scale: float) -> np.ndarray:
    """Convert (n, H, W, c) to uint8, in C order."""
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    converted = np.empty(images.shape, dtype=np.uint8)
    for first in range(0, len(images), AT_ONCE):
        piece = slice(first, first + AT_ONCE)
        converted[piece] = np.rint(images[piece].astype(np.float32) * scale)
    return converted


def _number_labels(
    path: Path, arrays: Mapping[str, np.ndarray], names: Mapping[str, str], counts: Mapping[str, int]
) -> tuple[list[str], dict[str, np.ndarray | None]]:
    """Return the names of the classes, and the labels (n,) of each part; `counts` is its number of images."""
    if not names:
        return [], dict.fromkeys(counts)
    if len(names) < len(counts):
        given = ", ".join(names.values())
        raise InputError(f"{path} holds {given}, but no labels for the other part: give both, or neither")
    there = {part: _check_labels(_said(path, name), arrays[name], counts[part]) for part, name in names.items()}
    together = np.concatenate(list(there.values()))
    if together.dtype.kind == "U":
        named, together = np.unique(together, return_inverse=True)
        classes = named.tolist()
    else:
        classes = [str(number) for number in range(int(together.max()) + 1 if len(together) else 0)]
    cuts = np.cumsum([len(labels) for labels in there.values()])[:-1]
    return classes, dict(zip(there, np.split(together.astype(np.int64), cuts), strict=True))


def _check_labels(said: str, labels: np.ndarray, count: int) -> np.ndarray:
    """Return labels (n,): whole numbers from 0, or names."""
    flat = labels[:, 0] if labels.shape == (count, 1) else labels
    if flat.shape != (count,) or flat.dtype.kind not in "iuU":
        found = f"has the shape {labels.shape} and the type {labels.dtype}"
        words = f"labels are one class number from 0, or one name, for each of {count} images"
        raise InputError(f"{said} {found}: {words}; fix them, or leave them out")
    if flat.dtype.kind != "U" and count:
        low, high = int(flat.min()), int(flat.max())
        if low < 0:
            raise InputError(f"{said} holds {low}: class numbers are whole numbers from 0; leave it out or renumber")
        if high >= MAX_CLASSES:
            raise InputError(f"{said}: label {high}: labels must be below {MAX_CLASSES:,}")
    return flat
