"""A folder of pictures, with or without class folders, as uint8 images."""

from __future__ import annotations

import copy
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from codegrid.budget import check_memory
from codegrid.codes import Signal
from codegrid.errors import InputError
from codegrid.file_names import printable
from codegrid.progress import progress_bar
from codegrid.tensors import digest_of, digest_of_file

from .decoded import Decoded, keep
from .found import Found, count_classes
from .images import Described, ImageBatch, ImageDataset, Size, affordable, evenly_spaced, variance_of
from .listing import TEST, TRAIN, list_folder
from .loading import Indices, forked_workers, in_batches, item_numbers, load_batches, shared_memory
from .pictures import Unreadable, look_at, read_picture
from .splits import split_indices

IN_MEMORY_BYTES = 2 * 2**30
FLOATS = 6  # bytes for each value of a batch: decoded, stacked, and converted to float
LOOKED_AT = 32  # pictures that represent all if not all are read at once
CHECKED = 10_000  # pictures that are searched for more damage once one is damaged
NAMED = 10  # damaged pictures named in a message
PIECE = 64  # pictures given to a thread or process at once
MANY = 2000  # pictures that are worth a process of their own


def load_folder(root: Path | None, split: str, size: Size | None, channels: int | None) -> FolderImages:
    """Find the pictures below `root`, with parts and classes by `codegrid.data.listing`; none is decoded yet.

    Raises `InputError` if the folder is ambiguous.
    """
    if root is None or not root.is_dir():
        raise InputError(f"no folder {root or 'is given'}: `data_root` must be a folder of pictures")
    contents = list_folder(root)
    (paths, labels, classes), num_train = contents.listing, contents.num_train
    if num_train is None:
        chosen = split_indices(labels, len(paths), split)
    else:
        parts = {TRAIN: range(num_train), TEST: range(num_train, len(paths))}
        chosen = np.array(parts.get(split, range(len(paths))))
    others = {} if split == "all" else {TRAIN if split == TEST else TEST: len(paths) - len(chosen)}
    notes = ("test is held out",) * (num_train is None and split != "all") + contents.notes
    paths, labels = [paths[number] for number in chosen], None if labels is None else labels[chosen]
    of_classes = count_classes(labels, classes)
    found = Found(len(paths), of_classes, str(root), split, others, contents.left_out, notes)
    return FolderImages(root, paths, labels, classes, size, channels, found)


class FolderImages(Described):
    """Pictures that are decoded on demand, by the workers of a data loader.

    It has the methods of `ImageDataset`. `paths` may also hold pictures that are not files: anything with an `open()`
    that PIL can read from, and a `str()` that names it in messages.
    """

    on_demand = True  # `load_batches` uses workers

    paths: Any  # a sequence

    def __init__(
        self,
        root: Path,
        paths: Any,
        labels: np.ndarray | None,
        classes: list[str],
        size: Size | None,
        channels: int | None,
        found: Found | None = None,
    ) -> None:
        self.root = root
        self.paths = paths
        self.labels = None if labels is None else torch.from_numpy(labels)
        self.classes = classes
        self.found = found or Found(len(paths), count_classes(labels, classes))
        # sizes and channels that are not given are taken from some of the pictures
        some = [look for i in self._some(LOOKED_AT) if (look := look_at(paths[i]))]
        grey = bool(some) and all(is_grey for is_grey, _ in some)
        self.in_channels = channels or (1 if grey else 3)
        self.resized = size is not None
        self.image_size = size or (some[0][1] if some else (1, 1))
        self.remedy = ""  # for damaged pictures

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> ImageBatch:
        return ImageBatch(self._decode(self.paths[index])[0], None if self.labels is None else self.labels[index])

    def batch(self, indices: Indices) -> ImageBatch:
        """Return some images, in the given order.

        Raises `InputError`, naming all damaged pictures that can be found in a minute or so.
        """
        numbers = item_numbers(indices)
        needed = FLOATS * len(numbers) * self.in_channels * math.prod(self.image_size)
        check_memory(f"{len(numbers):,} pictures", needed, "choose a smaller `batch_size` or `image_size`")
        decoded = []
        for number in numbers.tolist():
            try:
                decoded.append(self._decode(self.paths[number])[0])
            except Unreadable as error:
                others = (np.arange(number, number + min(len(self), CHECKED)) % len(self)).tolist()
                raise self._damaged(self._read(others)[0] or {number: error}) from error
        return ImageBatch(torch.stack(decoded), None if self.labels is None else self.labels[torch.from_numpy(numbers)])

    @property
    def signal(self) -> Signal:
        """The signal that a tokenizer for these images has."""
        return Signal("image", self.in_channels, self.image_size)

    @cached_property
    def files(self) -> list[str] | None:
        """The printable paths of the files, relative to the folder."""
        above = self.root.as_posix().rstrip("/") + "/"  # `relative_to` takes a second for 50,000
        return [printable(path.as_posix().removeprefix(above)) for path in self.paths]

    def fingerprint(self) -> str:
        """Return a digest of the files, the image size, the channels and the classes.

        It covers the names and sizes of all files, and the content of as many, evenly spaced, as take 2 GiB.
        """
        files = [[str(path.relative_to(self.root)), path.stat().st_size] for path in self.paths]
        with ThreadPoolExecutor() as pool:
            some = list(pool.map(digest_of_file, (self.paths[i] for i in affordable([size for _, size in files]))))
        return digest_of([files, some, list(self.image_size), self.in_channels, self.classes, *self.described()])

    def variance(self) -> float:
        """Return the variance of the values, in [-1, 1], of up to 10,000 evenly spaced pictures."""
        counts = torch.zeros(256, dtype=torch.int64)
        for i in progress_bar(self._some(10_000), desc="measuring variance", leave=False):
            counts += torch.bincount(self.batch([i]).images.flatten(), minlength=256)
        return variance_of(counts)

    def ready(self, skip_unreadable: bool = False) -> ImageDataset | FolderImages:
        """Return the images in memory if they take at most 2 GiB, or else on demand; this also adds notes to `found`.

        Args:
            skip_unreadable: leave out damaged pictures. All are decoded now, to find them.

        Raises `InputError`, naming the damaged pictures, unless they are left out.
        """
        length, shape = len(self), (self.in_channels, *self.image_size)
        self.remedy = ", or leave such pictures out with `skip_unreadable`"
        fits = length * math.prod(shape) <= IN_MEMORY_BYTES
        form = [self.in_channels, self.resized, list(self.image_size)]
        kept = keep([str(self.root.resolve()), self.found.part, form], self.paths) if fits else None
        if kept and (decoded := kept.read((length, *shape))):
            return self._in_memory(*decoded)
        images = shared_memory(length * math.prod(shape)).view(length, *shape) if fits else None
        reads_all = fits or skip_unreadable
        damaged, told = self._read(range(length) if reads_all else self._some(LOOKED_AT), images)
        if len(damaged) == length or (damaged and not skip_unreadable):
            if not reads_all:
                damaged |= self._read(range(min(length, CHECKED)))[0]
            raise self._damaged(damaged)
        whole = self._without(sorted(damaged)) if damaged else self
        if images is None:
            whole._note(told, "" if reads_all else f" of {min(length, LOOKED_AT)} looked at")
            return whole
        if damaged:
            images = images[[number for number in range(length) if number not in damaged]]
        elif kept:
            kept.write(Decoded(images, told))
        return whole._in_memory(images, told)

    def _in_memory(self, images: torch.Tensor, told: Counter[str]) -> ImageDataset:
        self._note(told)
        whole = ImageDataset(images, self.labels, self.classes, self.files, self.found, self.captions)
        whole.columns, whole.actions = self.columns, self.actions
        return whole

    def _note(self, told: Counter[str], of: str = "") -> None:
        notes = tuple(f"{count:,}{of} {words}" for words, count in sorted(told.items()))
        self.found = replace(self.found, notes=self.found.notes + notes)

    def _without(self, numbers: list[int]) -> FolderImages:
        """Return a copy without some of the pictures."""
        rest, kept = copy.copy(self), np.delete(np.arange(len(self)), numbers)
        rest.__dict__.pop("files", None)  # those of all, if they were asked for before
        left_out = Counter(self._name(number) for number in numbers)
        rest.paths = self._paths_of(kept)
        rest.labels = None if self.labels is None else self.labels[torch.from_numpy(kept)]
        rest.captions = None if self.captions is None else [self.captions[i] for i in kept.tolist()]
        rest.columns = {name: column[torch.from_numpy(kept)] for name, column in self.columns.items()}
        of_classes = count_classes(rest.labels, self.classes)
        reasons = {**self.found.left_out, "unreadable": left_out}
        rest.found = replace(self.found, images=len(kept), classes=of_classes, left_out=reasons)
        return rest

    def _some(self, at_most: int) -> list[int]:
        """Return at most this many evenly spaced indices, to represent all."""
        return evenly_spaced(len(self), at_most)

    def _paths_of(self, numbers: np.ndarray) -> Any:
        """Return the paths with these indices."""
        return [self.paths[number] for number in numbers.tolist()]

    def _name(self, number: int) -> str:
        path = self.paths[number]
        return path.relative_to(self.root).as_posix() if isinstance(path, Path) else str(path)

    def _read(
        self, numbers: Sequence[int], images: torch.Tensor | None = None
    ) -> tuple[dict[int, Unreadable], Counter[str]]:
        """Decode pictures, into `images` (n, c, H, W) if given; return the damaged ones, and counts of all notes."""
        damaged: dict[int, Unreadable] = {}
        told: Counter[str] = Counter()
        with progress_bar(desc="reading pictures", total=len(numbers), leave=False) as bar:
            for piece, unreadable, words in self._in_pieces(numbers, images):
                damaged |= {number: Unreadable(message) for number, message in unreadable.items()}
                told.update(words)
                bar.update(piece)
        return damaged, told

    def _in_pieces(self, numbers: Sequence[int], images: torch.Tensor | None) -> Iterator[_Read]:
        """Decode pictures in pieces, several at the same time."""
        pieces = in_batches(numbers, PIECE)
        if workers := forked_workers(len(numbers) // MANY):
            yield from load_batches(_Decoder(self, images), pieces, workers)
            return
        # threads suffice for few or large pictures: PIL releases the interpreter's lock while it decodes
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            yield from pool.map(lambda piece: self._read_piece(piece, images), pieces)

    def _read_piece(self, numbers: Sequence[int], images: torch.Tensor | None) -> _Read:
        unreadable: dict[int, str] = {}
        told: Counter[str] = Counter()
        for number in numbers:
            try:
                image, words = self._decode(self.paths[number])
            except Unreadable as error:
                unreadable[number] = str(error)
                continue
            told.update(words)
            if images is not None:
                images[number] = image
        return _Read(len(numbers), unreadable, told)

    def _damaged(self, damaged: dict[int, Unreadable]) -> InputError:
        """Return one error about all damaged pictures: the first with its reason, the others by name."""
        first, *others = sorted(damaged)
        more = ""
        if others:
            names = ", ".join(self._name(number) for number in others[:NAMED]) + ", …" * (len(others) > NAMED)
            more = f"; {len(others):,} more cannot be read: {names}"
        return InputError(f"{damaged[first]}{self.remedy if len(damaged) < len(self) else ''}{more}")

    def _decode(self, path: Any) -> tuple[torch.Tensor, tuple[str, ...]]:
        """Decode one picture to (c, H, W) uint8, upright, resized and centre-cropped; return it with notes about it."""
        height, width = self.image_size
        picture, told = read_picture(path, self.in_channels, self.image_size if self.resized else None)
        if self.resized:
            picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
        elif picture.size != (width, height):
            sizes = f"{picture.height}×{picture.width}, others are {height}×{width}"
            raise InputError(f"{path} is {sizes}: give `image_size` to bring them to one size")
        # equals `np.array(picture)`, which takes twice as long
        pixels = np.frombuffer(bytearray(picture.tobytes()), np.uint8).reshape(height, width, self.in_channels)
        return torch.from_numpy(pixels.transpose(2, 0, 1)), told


class _Read(NamedTuple):
    """The result of decoding one piece of the pictures."""

    pictures: int  # number of pictures in it
    unreadable: dict[int, str]  # what is wrong with a picture, by its index
    told: Counter[str]


class _Decoder:
    """A stand-in for a data set, for workers that decode pictures into shared memory."""

    on_demand = True

    def __init__(self, pictures: FolderImages, images: torch.Tensor | None) -> None:
        self.pictures, self.images = pictures, images

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, numbers: Sequence[int]) -> _Read:
        """Decode some pictures."""
        return self.pictures._read_piece(numbers, self.images)
