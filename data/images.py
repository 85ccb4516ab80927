"""Images as the models see them: floats in [-1, 1], converted from uint8 and back. Only this file defines the range.

Sound has the same range; it is kept as int16.

Shapes: n images of the set, b batch, c channels, H W image.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from codegrid.budget import check_memory
from codegrid.codes import Signal
from codegrid.errors import InputError
from codegrid.tensors import digest_of, sha256

from .found import Found, count_classes
from .loading import Indices, item_numbers

Size = tuple[int, int]  # (H, W)
CHANNELS = (1, 3)
LOUDEST = 32767  # of a sample of sound
RANGES = {torch.uint8: (127.5, 1), torch.int16: (LOUDEST, 0)}  # how stored values become floats: / scale − shift
FINGERPRINTED = 2 * 2**30  # bytes of files
MAX_PIXELS = 178_956_970  # of one picture: Pillow, too, treats a larger one as an attack


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Turn values 0 ... 255, or int16 of sound, into float32 in [-1, 1].

    Raises `InputError` if memory cannot hold that many.
    """
    check_memory(f"{len(images):,} images", 4 * images.numel(), "read fewer at once (`batch_size`)")
    scale, shift = RANGES.get(images.dtype, RANGES[torch.uint8])
    return images.float() / scale - shift


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Turn floats in [-1, 1] into the nearest uint8; values outside are clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_int16(waves: torch.Tensor) -> torch.Tensor:
    """Turn sound in [-1, 1] into the nearest int16; values outside are clipped."""
    return (waves.float().clamp(-1, 1) * LOUDEST).round().to(torch.int16)


def to_stored(kind: str, x: torch.Tensor) -> torch.Tensor:
    """Return a signal of some kind in [-1, 1] as it is stored: images as uint8, sound as int16."""
    return STORED[kind](x)


STORED = {"image": to_uint8, "sound": to_int16}


def fit(images: torch.Tensor, size: Size | None = None, channels: int | None = None) -> torch.Tensor:
    """Bring float images (b, c, H, W) to 1 or 3 channels, and resize and centre-crop them to a size.

    torchvision's resize of uint8 is not used: it is off by one in a fifth of the pixels, and takes seconds to import.

    Raises `InputError` if a thin strip would have to be enlarged beyond all memory.
    """
    if channels == 1 and images.shape[1] == 3:
        red, green, blue = images.unbind(1)  # ITU-R 601, as PIL converts
        images = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
    elif channels == 3 and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    height, width = images.shape[2:]
    if size is None or size == (height, width):
        return images
    scale = max(size[0] / height, size[1] / width)
    covering = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    if covering[0] * covering[1] > MAX_PIXELS:
        raise InputError(f"images of {height}×{width} cannot be brought to {size[0]}×{size[1]}: choose another size")
    resized = F.interpolate(images, covering, mode="bilinear", antialias=True)
    top, left = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    return resized[:, :, top : top + size[0], left : left + size[1]]


class ImageBatch(NamedTuple):
    """Images of a data set; a single one has no batch axis."""

    images: torch.Tensor  # (b, c, H, W) uint8; of sound (b, c, T) int16
    labels: torch.Tensor | None  # (b,) int64
    lengths: torch.Tensor | None = None  # (b,) int64 samples of sound, 1 ... T; silence follows


class Described:
    """Facts that may be known of the images of a data set, besides their labels."""

    captions: Sequence[tuple[str, ...]] | None = None  # (n) the texts of each
    columns: Mapping[str, torch.Tensor] = {}  # (n, ...) int64 or float32, by name
    actions: Sequence[str] = ()  # of frames of videos: the names of the actions that a column holds

    def described(self) -> list[Any]:
        """Return what this adds to a fingerprint: nothing if nothing is known."""
        texts = [] if self.captions is None else [digest_of(list(map(list, self.captions)))]
        each = {name: sha256(column.contiguous().numpy()) for name, column in self.columns.items()}
        return [*texts, *([each, list(self.actions)] if each else [])]


class ImageDataset(Described):
    """Images that fit in memory, as one uint8 tensor.

    Args:
        images: (n, c, H, W) uint8, c 1 or 3.
        labels: (n,) int64, or None.
        classes: the name of each label, in order; empty if there are no labels.
        files: (n) the printable path of each image's file, if they came from files.
        found: a description of what was read; by default it is made from the images.
        captions: (n) the texts of each image, if they have any.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor | None = None,
        classes: Sequence[str] = (),
        files: list[str] | None = None,
        found: Found | None = None,
        captions: Sequence[tuple[str, ...]] | None = None,
    ) -> None:
        self.images = images
        self.in_channels, *size = images.shape[1:]
        self.image_size = (size[0], size[1])
        self.labels = labels
        self.classes = list(classes)
        self.files = files
        self.captions = captions
        self.found = found or Found(len(images), count_classes(labels, self.classes))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ImageBatch:
        return ImageBatch(self.images[index], None if self.labels is None else self.labels[index])

    def batch(self, indices: Indices) -> ImageBatch:
        """Return some images, in the given order."""
        chosen: slice | torch.Tensor
        if isinstance(indices, range) and indices.step == 1:
            chosen = slice(indices.start, indices.stop)  # consecutive images are a view, not a copy
        else:
            chosen = torch.from_numpy(item_numbers(indices))
        return ImageBatch(self.images[chosen], None if self.labels is None else self.labels[chosen])

    @property
    def signal(self) -> Signal:
        """The signal that a tokenizer for these images has."""
        return Signal("image", self.in_channels, self.image_size)

    def fingerprint(self) -> str:
        """Return a digest that differs between different data sets."""
        pixels = sha256(self.images.contiguous().numpy())
        labels = "none" if self.labels is None else sha256(self.labels.numpy().tobytes())
        return digest_of([list(self.images.shape), pixels, labels, self.classes, *self.described()])

    def variance(self) -> float:
        """Return the variance of all values in [-1, 1]: one number, from the exact histogram."""
        counts = torch.zeros(256, dtype=torch.int64)
        for piece in self.images.split(4096):
            counts += torch.bincount(piece.flatten(), minlength=256)
        return variance_of(counts)


def variance_of(counts: torch.Tensor) -> float:
    """Return the variance of values in [-1, 1] whose histogram as uint8 is `counts` (256,)."""
    p = counts.double() / counts.sum()
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mean = (p * values).sum()
    return float((p * (values - mean).square()).sum())


def evenly_spaced(length: int, at_most: int) -> list[int]:
    """Return up to `at_most` indices spread over 0 ... length-1, so that they meet every class of sorted data."""
    count = min(length, at_most)
    return [i * length // count for i in range(count)]


def affordable(sizes: Sequence[int] | np.ndarray) -> list[int]:
    """Return evenly spaced indices of files whose content a fingerprint can cover: about 2 GiB in total."""
    return evenly_spaced(len(sizes), max(1, int(FINGERPRINTED / max(1, sum(sizes)) * len(sizes))))
