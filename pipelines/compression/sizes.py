"""Images of any sizes beside the predictions of a tokenizer, which all have one.

Shapes: n images, c channels, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

Shape = tuple[int, ...]  # (c, H, W)
OF_GREY = (299, 587, 114)  # parts of red, green and blue, of 1,000 (ITU-R 601)


def groups_of(shapes: Sequence[Shape]) -> dict[Shape, np.ndarray]:
    """Return the numbers (m,) of the images of each shape, the shapes in order."""
    found: dict[Shape, list[int]] = {}
    for number, shape in enumerate(shapes):
        found.setdefault(tuple(shape), []).append(number)
    return {shape: np.array(found[shape]) for shape in sorted(found)}


def bring_to(guess: np.ndarray, shape: Shape) -> np.ndarray:
    """Enlarge predictions (n, c, H, W) uint8 to the shape that their images had before they were cropped and resized.

    What was cropped repeats the edge. Pillow computes this in whole numbers, so that it is the same everywhere.
    """
    channels, height, width = shape
    if guess.shape[1:] == tuple(shape):
        return guess
    if channels != guess.shape[1]:
        guess = _as_grey(guess) if channels == 1 else np.repeat(guess, channels, 1)
    ratio = guess.shape[3] / guess.shape[2]
    inner = min(height, max(1, round(width / ratio))), min(width, max(1, round(height * ratio)))
    if inner != guess.shape[2:]:
        guess = np.stack([[_resize(channel, inner) for channel in image] for image in guess])
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    around = ((0, 0), (0, 0), (top, height - inner[0] - top), (left, width - inner[1] - left))
    return np.pad(guess, around, "edge")


def _as_grey(images: np.ndarray) -> np.ndarray:
    parts = np.array(OF_GREY)[:, None, None]
    return ((images * parts).sum(1, keepdims=True) // sum(OF_GREY)).astype(np.uint8)


def _resize(channel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.array(Image.fromarray(channel).resize(size[::-1], Image.Resampling.BICUBIC))
