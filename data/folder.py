"""A folder of pictures, with or without class folders, as uint8 images."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from codegrid.codes import Signal
from codegrid.errors import InputError, reason_of
from codegrid.tensors import digest_of

from .images import MAX_PIXELS, ImageBatch, ImageDataset, evenly_spaced, variance_of
from .loading import Indices, item_numbers
from .splits import split_indices

EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # others may start programs to be read
IN_MEMORY_BYTES = 2 * 2**30
TEST_FOLDERS = ("test", "val", "valid", "validation")

# by the filter and not around each call: pictures are decoded in threads
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def load_folder(
    root: Path, split: str, size: tuple[int, int] | None, channels: int | None
) -> "ImageDataset | FolderImages":
    """Load the pictures below `root`; its folders `train` and `test` (or `val`) are the parts, where it has both.

    What takes at most 2 GiB decoded is kept in memory; more is decoded batch by batch.
    """
    if not root.is_dir():
        raise InputError(f"no folder {root}: `data_root` must be a folder of pictures")
    test = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if (root / "train").is_dir() and test:
        train, held_out = list_pictures(root / "train"), list_pictures(test)
        paths, labels, classes = train if split == "train" else held_out
        if split == "all":
            paths = train[0] + held_out[0]
            labels = None if labels is None or train[1] is None else np.concatenate([train[1], labels])
        if held_out[2] != train[2]:
            raise InputError(f"{test} has other class folders than {root / 'train'}: they must be the same")
    else:
        only_train = (root / "train").is_dir() and len([path for path in root.iterdir() if path.is_dir()]) == 1
        paths, labels, classes = list_pictures(root / "train" if only_train else root)
        chosen = split_indices(labels, len(paths), split)
        paths, labels = [paths[i] for i in chosen], None if labels is None else labels[chosen]
    pictures = FolderImages(root, paths, labels, classes, size, channels)
    height, width = pictures.image_size
    if len(paths) * pictures.in_channels * height * width <= IN_MEMORY_BYTES:
        return pictures.in_memory()
    return pictures


class FolderImages:
    """Pictures that are decoded when they are asked for: what a data loader's workers read from.

    It has the calls of `ImageDataset`. `paths` may also hold other pictures than files: anything that has an `open()`
    that PIL can read from, and a name for messages, its `str()`.
    """

    on_demand = True  # `load_batches` reads it by workers

    paths: Any  # a sequence

    def __init__(
        self,
        root: Path,
        paths: Any,
        labels: np.ndarray | None,
        classes: list[str],
        size: tuple[int, int] | None,
        channels: int | None,
    ) -> None:
        self.root = root
        self.paths = paths
        self.labels = None if labels is None else torch.from_numpy(labels)
        self.classes = classes
        # what is not asked for is read off some of the pictures
        some = [_look_at(paths[i]) for i in evenly_spaced(len(paths), 32)] if paths else []
        grey = bool(some) and all(is_grey for is_grey, _ in some)
        self.in_channels = channels or (1 if grey else 3)
        self.resized = size is not None
        self.image_size = size or (some[0][1] if some else (1, 1))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> ImageBatch:
        return ImageBatch(self._decode(self.paths[index]), None if self.labels is None else self.labels[index])

    def batch(self, indices: Indices) -> ImageBatch:
        """Return some images, in the order of their numbers."""
        numbers = item_numbers(indices)
        images = torch.stack([self._decode(self.paths[number]) for number in numbers.tolist()])
        return ImageBatch(images, None if self.labels is None else self.labels[torch.from_numpy(numbers)])

    @property
    def signal(self) -> Signal:
        """The images as a tokenizer is told of them."""
        return Signal("image", self.in_channels, self.image_size)

    def fingerprint(self) -> str:
        """Return a digest of the names and sizes of the files, and of what is made of them."""
        files = [[str(path.relative_to(self.root)), path.stat().st_size] for path in self.paths]
        return digest_of([files, list(self.image_size), self.in_channels, self.classes])

    def variance(self) -> float:
        """Return the variance of the values of up to 10,000 evenly spaced pictures, in the range [-1, 1]."""
        counts = torch.zeros(256, dtype=torch.int64)
        for i in tqdm(evenly_spaced(len(self), 10_000), desc="measuring variance", leave=False):
            counts += torch.bincount(self._decode(self.paths[i]).flatten(), minlength=256)
        return variance_of(counts)

    def in_memory(self) -> ImageDataset:
        """Decode every picture now."""
        images = torch.empty(len(self), self.in_channels, *self.image_size, dtype=torch.uint8)
        threads = os.cpu_count() or 1
        with ThreadPoolExecutor(threads) as pool:  # PIL lets go of the interpreter while it decodes
            decoded = pool.map(self._decode, self.paths, chunksize=64)
            for i, image in enumerate(tqdm(decoded, desc="reading pictures", total=len(self), leave=False)):
                images[i] = image
        return ImageDataset(images, self.labels, self.classes)

    def _decode(self, path: Any) -> torch.Tensor:
        """One picture → (c, H, W) uint8, upright, resized and centre-cropped."""
        height, width = self.image_size
        with _open(path) as picture:
            try:
                if self.resized:
                    picture.draft("RGB", (2 * width, 2 * height))  # large JPEGs decode at a fraction of their size
                upright = _on_white(_as_8_bit(path, ImageOps.exif_transpose(picture), picture.format)).convert(
                    "L" if self.in_channels == 1 else "RGB"
                )
            except InputError:
                raise
            except Exception as error:  # what a damaged picture raises has many types
                raise _unreadable(path, error) from error
        if self.resized:
            upright = ImageOps.fit(upright, (width, height), Image.Resampling.BICUBIC)
        elif upright.size != (width, height):
            raise InputError(
                f"{path} is {upright.height}×{upright.width}, others are {height}×{width}: "
                "give `image_size` to bring them to one size"
            )
        pixels = torch.from_numpy(np.array(upright))
        return pixels[None] if self.in_channels == 1 else pixels.permute(2, 0, 1)


def _open(path: Any) -> Image.Image:
    """Read a picture's header."""
    try:
        picture = Image.open(path if isinstance(path, Path) else path.open(), formats=FORMATS)
    except InputError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        raise InputError(
            f"{path} has {picture.height}×{picture.width} pixels, at most {MAX_PIXELS:,} are read: "
            "make it smaller or remove it"
        )
    return picture


def _look_at(path: Any) -> tuple[bool, tuple[int, int]]:
    """Whether a picture is grey, and its (H, W) once it is upright."""
    with _open(path) as picture:
        try:
            on_its_side = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        except Exception as error:
            raise _unreadable(path, error) from error
        size = (picture.width, picture.height) if on_its_side else (picture.height, picture.width)
        return picture.mode in ("1", "L", "I") or picture.mode.startswith("I;16"), size


def _as_8_bit(path: Any, picture: Image.Image, file_format: str | None) -> Image.Image:
    """16-bit grey scaled down: PIL's own conversion clips it, to white."""
    # PIL keeps the 16 bits of some formats in 32
    if picture.mode.startswith("I;16") or (picture.mode == "I" and file_format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise InputError(f"{path} has values of 32 bits, whose range is not known: save it with 8 or 16")
    return picture


def _on_white(picture: Image.Image) -> Image.Image:
    """Transparent parts become white: dropping alpha would show colours that no one sees, black mostly."""
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)


def _unreadable(path: Any, error: Exception) -> InputError:
    reason = reason_of(error)
    return InputError(f"{path} is not a readable picture ({reason}): fix or remove it")


def list_pictures(root: Path) -> tuple[list[Path], np.ndarray | None, list[str]]:
    """Return paths, labels and class names: one class a folder, in the order of the names; no folders, no labels."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    by_class = [(folder.name, pictures) for folder in folders if (pictures := _pictures_below(folder))]
    loose = [path for path in sorted(root.iterdir()) if _is_picture(path)]
    if not loose and not by_class:
        raise InputError(f"no pictures in {root}: it needs files that end in {' '.join(sorted(EXTENSIONS))}")
    if loose and by_class:
        raise InputError(
            f"{root} holds pictures both loose ({loose[0].name}) and in folders ({by_class[0][0]}): "
            "put all into class folders, or none"
        )
    if loose:
        return loose, None, []
    labels = np.concatenate([np.full(len(pictures), i, dtype=np.int64) for i, (_, pictures) in enumerate(by_class)])
    return [path for _, pictures in by_class for path in pictures], labels, [name for name, _ in by_class]


def _pictures_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if _is_picture(path))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
