"""Images and sound that a command writes, as arrays in .npz files or one file each; a stopped run can continue.

Shapes: n images of all files, b batch, c channels, H W image.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import pad

from codegrid.codes import NO_LABEL
from codegrid.errors import InputError
from codegrid.files import write_folder

from .digests import unwritten
from .images import to_float
from .npz import Shape, image_files, read_first, write_images
from .sound_files import read_wave, write_wave

Names = Callable[[range], Sequence[str]]  # image numbers → a text for each one's file name

UNSAFE = re.compile(r"[^\w-]+")  # in untrusted names: separators, dots, spaces, control characters
MAX_NAME = 48  # characters, of up to four bytes: file systems allow at most 255
NUMBER = re.compile(r"(\d+)(?:-.*)?\.(?:png|wav)")


class NpzFiles:
    """Images (c, H, W) numbered 0 ... n-1, as arrays in one or several .npz files; see `codegrid.data.npz`."""

    def __init__(self, folder: Path, files: dict[str, range], shape: Shape, labels: np.ndarray | None) -> None:
        self.folder, self.files, self.shape, self.labels = folder, files, shape, labels
        self._file_of = {numbers: file for file, numbers in files.items()}

    def __str__(self) -> str:
        names = list(self.files)
        return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"

    def results(self) -> list[str]:
        """Return the names of the files whose presence shows that a run has finished."""
        return list(self.files)

    def missing(self) -> list[range]:
        """Return the image numbers of each file that is missing or incomplete: the work left by a stopped run."""
        return list(unwritten(self.folder, self.files).values())

    def write(self, numbers: range, batches: Iterable[torch.Tensor]) -> None:
        """Write the images (b, c, H, W) uint8 of one missing range as they arrive."""
        labels = None if self.labels is None else self.labels[numbers.start : numbers.stop]
        write_images(self.folder, self._file_of[numbers], (len(numbers), *self.shape[1:]), batches, labels)

    def read_first(self, count: int) -> torch.Tensor:
        """Return the first `count` images, or all if there are fewer: (n, c, H, W) in [-1, 1]."""
        return read_first(self.folder, self.files, count)


class PngFiles:
    """Images (c, H, W) numbered 0 ... n-1, one PNG file each (`00012-cat.png`); has the methods of `NpzFiles`."""

    ending = ".png"

    def __init__(self, folder: Path, shape: Shape, names: Names) -> None:
        self.folder, self.shape, self.names = folder, shape, names

    def __str__(self) -> str:
        return f"{self.folder.name}/"

    def results(self) -> list[str]:
        """Return nothing: there can be a million files, and people delete those that they do not like."""
        return []

    def missing(self) -> list[range]:
        """Return the ranges of numbers whose pictures are missing or incomplete."""
        wanted = np.ones(self.shape[0], dtype=bool)
        for number, path in self._found():
            wanted[number] = not self._is_whole(path)
        numbers = np.flatnonzero(wanted)
        runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1) if len(numbers) else []
        return [range(int(run[0]), int(run[-1]) + 1) for run in runs]

    def write(self, numbers: range, batches: Iterable[torch.Tensor]) -> None:
        """Write a file for each image (b, c, H, W) uint8 of one missing range as they arrive."""
        first = numbers.start
        for images in batches:
            write_pictures(self.folder, to_pictures(images), self.shape[0], self.names, first)
            first += len(images)

    def read_first(self, count: int) -> torch.Tensor:
        """Return the first `count` images, or all if there are fewer: (n, c, H, W) in [-1, 1]."""
        channels, height, width = self.shape[1:]
        found = dict(self._found())
        pixels = [np.array(Image.open(found[number])) for number in range(min(count, self.shape[0]))]
        return to_float(torch.from_numpy(np.stack(pixels).reshape(-1, height, width, channels)).permute(0, 3, 1, 2))

    def _found(self) -> Iterator[tuple[int, Path]]:
        for name in os.listdir(self.folder) if self.folder.is_dir() else ():
            match = NUMBER.fullmatch(name)
            if match and name.endswith(self.ending) and int(match[1]) < self.shape[0]:
                yield int(match[1]), self.folder / name

    def _is_whole(self, path: Path) -> bool:
        channels, height, width = self.shape[1:]
        try:
            with Image.open(path, formats=["PNG"]) as picture:
                fits = picture.size == (width, height) and picture.mode == ("L" if channels == 1 else "RGB")
                picture.verify()  # its checksums
                return fits
        except Exception:  # damage raises many types of errors in Pillow, and each means: write the file again
            return False


class WaveFiles(PngFiles):
    """Sound (1, T) numbered 0 ... n-1, one .wav file each; has the methods of `NpzFiles`."""

    ending = ".wav"

    def __init__(self, folder: Path, shape: Shape, names: Names, rate: float) -> None:
        super().__init__(folder, shape, names)
        self.rate = rate

    def write(self, numbers: range, batches: Iterable[torch.Tensor | Sequence[torch.Tensor]]) -> None:
        """Write a file for each wave (1, T) int16 of one missing range as their batches arrive."""
        first = numbers.start
        for waves in batches:
            files = file_names(range(first, first + len(waves)), self.shape[0], self.names, self.ending)
            with write_folder(self.folder) as staging:
                for file, wave in zip(files, waves, strict=True):
                    write_wave(staging / file, wave, self.rate)
            first += len(waves)

    def read_first(self, count: int) -> torch.Tensor:
        """Return the first `count` waves, or all if there are fewer: (n, 1, T) in [-1, 1]."""
        found = dict(self._found())
        waves = [read_wave(found[number]) for number in range(min(count, self.shape[0]))]
        return to_float(torch.stack(waves))

    def _is_whole(self, path: Path) -> bool:
        try:
            return read_wave(path).shape == self.shape[1:]
        except Exception:  # damage raises many types of errors: write the file again
            return False


class ClipFiles(WaveFiles):
    """Sounds (1, T) of different lengths numbered 0 ... n-1, one .wav file each; has the methods of `NpzFiles`."""

    def __init__(self, folder: Path, lengths: Sequence[int], names: Names, rate: float) -> None:
        super().__init__(folder, (len(lengths), 1, max(lengths)), names, rate)
        self.lengths = lengths

    def read_first(self, count: int) -> torch.Tensor:
        """Return the first `count` sounds, or all if there are fewer, with silence after shorter ones: (n, 1, T)."""
        found = dict(self._found())
        waves = [read_wave(found[number]) for number in range(min(count, len(self.lengths)))]
        longest = max(wave.shape[1] for wave in waves)
        return to_float(torch.stack([pad(wave, (0, longest - wave.shape[1])) for wave in waves]))

    def _is_whole(self, path: Path) -> bool:
        match = NUMBER.fullmatch(path.name)
        try:
            return match is not None and read_wave(path).shape == (1, self.lengths[int(match[1])])
        except Exception:  # as above
            return False


ImageFiles = NpzFiles | PngFiles  # WaveFiles are PngFiles of another kind


def make_files(
    file_format: str | None,
    folder: Path,
    name: str,
    shape: Shape,
    labels: np.ndarray | None,
    names: Names,
    shard_size: int,
    rate: float | None = None,
) -> ImageFiles:
    """Return the files for n images of shape (n, c, H, W) in a folder: NAME.npz, or NAME/00000.png and so on.

    Args:
        file_format: npz or png, by default npz; for sound (n, 1, T), wav.
        labels: (n,), for .npz files, or None.
        names: texts for the names of PNG files.
        shard_size: images in one .npz file.
        rate: samples per second of sound.

    Raises `InputError` if files of this format cannot hold them.
    """
    file_format = file_format or ("npz" if rate is None else "wav")
    if (file_format == "wav") != (rate is not None):
        held, remedy = ("images", "npz or png") if rate is None else ("sound", "wav")
        raise InputError(f"`format` {file_format}: these are {held}: use {remedy}")
    if rate is not None:
        return WaveFiles(folder / name, shape, names, rate)
    if file_format == "npz":
        return NpzFiles(folder, image_files(name, shape[0], shard_size), shape, labels)
    if shape[1] not in (1, 3):
        raise InputError(f"`format` png: images have {shape[1]} channels, but a picture must have 1 or 3: use npz")
    return PngFiles(folder / name, shape, names)


def to_pictures(images: torch.Tensor) -> list[Image.Image]:
    """Turn images (b, c, H, W) uint8, c 1 or 3, into PIL pictures, grey or RGB."""
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]


def write_pictures(
    folder: str | Path, pictures: Sequence[Image.Image], count: int, names: Names, first: int = 0
) -> list[Path]:
    """Write pictures into a folder, one PNG file each, and return their paths.

    Args:
        count: n, the number of all pictures that the folder will hold.
        names: a text for each picture, shown in its file name. Other characters than letters, digits, - and _ become _.
        first: the number of the first picture.
    """
    files = file_names(range(first, first + len(pictures)), count, names, ".png")
    with write_folder(folder) as staging:
        for file, picture in zip(files, pictures, strict=True):
            picture.save(staging / file, "PNG")
    return [Path(folder) / file for file in files]


def file_names(numbers: range, count: int, names: Names, ending: str) -> list[str]:
    """Return file names for some of `count` items: number, name as far as it is safe, and ending."""
    kept = (UNSAFE.sub("_", name).strip("_")[:MAX_NAME] for name in names(numbers))
    digits = max(5, len(str(count - 1)))
    return [f"{n:0{digits}d}{'-' * bool(name)}{name}{ending}" for n, name in zip(numbers, kept, strict=True)]


def names_of_labels(labels: Iterable[int] | None, classes: Sequence[str], count: int) -> list[str]:
    """Return the class of each of `count` images, by its name or number, or `none`; empty texts without labels."""
    if labels is None:
        return [""] * count
    return ["none" if label == NO_LABEL else classes[label] if classes else str(label) for label in map(int, labels)]


def names_of_files(files: Iterable[object]) -> list[str]:
    """Return the names of files without their folders and endings."""
    return [PurePosixPath(str(file)).stem for file in files]
