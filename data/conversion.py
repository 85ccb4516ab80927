"""Conversion of pictures and arrays of any common form to the images that models take.

Shapes: n images of an array, b batch, c channels, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from codegrid.errors import InputError, reason_of
from codegrid.limits import MAX_SIDE, short
from codegrid.tensors import check_images

from .images import CHANNELS, Size, fit, to_float
from .pictures import flatten

RGBA = 4  # the most channels that an array of a picture has: a longer last axis is its width


def as_images(images: Any, size: Sequence[int] | None = None, channels: int | None = None) -> torch.Tensor:
    """Turn pictures or arrays into a batch of images (b, c, H, W), float32 in [-1, 1], as all models take them.

    Args:
        images: one of these, or a list of them:

            - a PIL picture: it is turned upright, and transparent parts become white;
            - a NumPy array (H, W), (H, W, c), (n, H, W) or (n, H, W, c): whole numbers 0 ... 255, or floats 0 ... 1;
            - a tensor (H, W), (c, H, W) or (b, c, H, W): whole numbers 0 ... 255, or floats in [-1, 1], which are
              not changed.
        size: (H, W) to which each image is resized and centre-cropped, such as `tokenizer.signal.size`. None: its own.
        channels: 1 or 3, to which colours are converted. None: 1 if all images are grey, otherwise 3.

    Raises `InputError` if something is not an image, its values are out of range, or sizes differ.

    Examples:
        >>> as_images(np.zeros((28, 28, 3), dtype=np.uint8), size=(14, 14), channels=1).shape
        torch.Size([1, 1, 14, 14])
    """
    if channels not in (None, *CHANNELS):
        raise InputError(f"`channels` {short(channels)}: it must be 1 or 3")
    is_pair = isinstance(size, list | tuple) and len(size) == 2
    if size is not None and not (is_pair and all(type(side) is int and 1 <= side <= MAX_SIDE for side in size)):
        raise InputError(f"`size` {short(size)}: it must be (height, width), each from 1 to {MAX_SIDE:,}")
    several = list(images) if isinstance(images, list | tuple) else [images]
    if not several:
        raise InputError("`images` is empty: give at least one")
    batches = [_convert(image, None if size is None else (size[0], size[1]), channels) for image in several]
    if channels is None and len({batch.shape[1] for batch in batches}) > 1:
        return as_images(several, size, 3)
    sizes = {tuple(batch.shape[2:]) for batch in batches}
    if len(sizes) > 1:
        words = ", ".join(f"{height}×{width}" for height, width in sorted(sizes)[:3])
        raise InputError(f"`images` have different sizes ({words}): give `size` to bring them to one")
    return torch.cat(batches)


def _convert(image: Any, size: Size | None, channels: int | None) -> torch.Tensor:
    """Convert one picture or array to (b, c, H, W) in [-1, 1]."""
    if isinstance(image, Image.Image):
        return _of_picture(image, size, channels)
    if isinstance(image, np.ndarray):
        values, needed = _of_array(image), "an array must be (n, H, W) or (n, H, W, c)"
    elif isinstance(image, torch.Tensor):
        values = image[(None,) * (4 - image.ndim)] if image.ndim in (2, 3) else image
        needed = "a tensor must be (c, H, W) or (b, c, H, W)"
    else:
        raise InputError(f"`images` {short(image)}: give PIL pictures (PIL.Image.open), NumPy arrays or tensors")
    if values.ndim != 4 or values.shape[1] not in CHANNELS or not values.numel():
        raise InputError(f"`images` of shape {tuple(image.shape)}: {needed}, of 1 or 3 channels")
    if values.is_floating_point():
        check_images("images", values)
        return fit(values.float(), size, channels)
    if values.dtype == torch.bool:
        raise InputError("`images` of bool: give whole numbers 0 ... 255")
    if values.dtype != torch.uint8:
        values = values.long()  # torch cannot compare every integer type
        if not 0 <= int(values.min()) <= int(values.max()) <= 255:
            raise InputError(f"`images` from {values.min()} to {values.max()}: whole numbers must be from 0 to 255")
    return to_float(fit(values.float(), size, channels).round().clamp(0, 255))


def _of_picture(picture: Image.Image, size: Size | None, channels: int | None) -> torch.Tensor:
    """Convert a PIL picture to (1, c, H, W) in [-1, 1], by the same steps as a file in a folder."""
    try:
        upright, _ = flatten("a picture", picture)
    except InputError:
        raise
    except Exception as error:  # a picture is decoded only now, and damage raises many types of errors
        raise InputError(f"`images`: a picture cannot be read ({reason_of(error)})") from error
    is_grey = channels == 1 or (channels is None and upright.mode in ("1", "L"))
    upright = upright.convert("L" if is_grey else "RGB")
    if size is not None:
        upright = ImageOps.fit(upright, (size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(upright))
    return to_float(pixels[None, None] if is_grey else pixels.permute(2, 0, 1)[None])


def _of_array(array: np.ndarray) -> torch.Tensor:
    """Convert a NumPy array with channels last to (b, c, H, W), and floats 0 ... 1 to [-1, 1]."""
    if array.dtype.kind not in "biuf":
        raise InputError(f"`images` of {array.dtype}: an array must hold numbers")
    if array.dtype.kind == "f":
        least, largest = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not -0.01 <= least <= largest <= 1.01:  # true if one is not a number, too
            words = "floats in an array must be from 0 to 1; give whole numbers for 0 ... 255, or a tensor for [-1, 1]"
            raise InputError(f"`images` of {array.dtype} from {least:.3g} to {largest:.3g}: {words}")
        array = array.astype(np.float32).clip(0, 1) * 2 - 1
    elif array.dtype != np.uint8:
        array = array.astype(bool if array.dtype == bool else np.int64)
    if array.ndim < 2:
        return torch.from_numpy(np.array(array))
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] > RGBA):
        array = array[..., None]
    array = array[None] if array.ndim == 3 else array
    return torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, 1)
