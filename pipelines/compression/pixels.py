"""All pixels of images of any shapes, written after their codes and read again.

Shapes: n images, m images of one shape, c channels, H W image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from codegrid.budget import check_memory
from codegrid.data.loading import in_order
from codegrid.errors import InputError
from codegrid.progress import progress_bar
from codegrid.stage2_prior.coding.streams import Stream

from .container import CHANGED, Header
from .residuals import Coefficients, PixelCoder, count_features, fit_coefficients
from .sizes import Shape, bring_to, groups_of

AT_ONCE = 2**24  # values whose symbols may follow one another: those of one pixel of many images


def write_pixels(stream: Stream, guess: np.ndarray, images: Sequence[np.ndarray]) -> dict[str, Any]:
    """Write images (c, H, W) uint8; return the fields of the header by which they are read again.

    Args:
        guess: (n, c, H, W) uint8, the predictions of a tokenizer.
    """
    groups = groups_of([image.shape for image in images])
    fitted = {}
    for channels in sorted({shape[0] for shape in groups}):
        most = max((shape for shape in groups if shape[0] == channels), key=lambda shape: len(groups[shape]))
        some = np.stack([images[number] for number in groups[most]])
        fitted[channels] = fit_coefficients(some, bring_to(guess[groups[most]], most))
    _code_groups(stream, guess, groups, fitted, lambda numbers: np.stack([images[number] for number in numbers]))
    coefficients = list(chain(*(of_channel for channels in fitted for of_channel in fitted[channels])))
    return {"predicted": _digest([guess]), "pixels": _digest(images), "coefficients": coefficients}


def read_pixels(
    stream: Stream, guess: np.ndarray, shapes: Sequence[Shape] | None, header: Header, source: str
) -> list[np.ndarray]:
    """Read images (c, H, W) uint8 that `write_pixels` wrote.

    Args:
        shapes: of the images; None: that of the predictions.
        source: the name of the file for messages.

    Raises `InputError` if the predictions, or the images, are not those of its making.
    """
    if _digest([guess]) != header.predicted:
        raise InputError(f"{source}: the predicted pixels {CHANGED}")
    groups = groups_of(shapes or [guess.shape[1:]] * len(guess))
    values = sum(int(np.prod(shape)) * len(numbers) for shape, numbers in groups.items())
    check_memory(f"{len(guess):,} images", 2 * values, "use one with more memory")
    kinds = sorted({shape[0] for shape in groups})
    counts = [[count_features(channel) for channel in range(channels)] for channels in kinds]
    if len(header.coefficients) != sum(map(sum, counts)):
        raise InputError(f"{source} is damaged (its prediction is of other images): make it again")
    numbers = iter(header.coefficients)
    fitted = {
        channels: [[next(numbers) for _ in range(count)] for count in of_kind]
        for channels, of_kind in zip(kinds, counts, strict=True)
    }
    images = _code_groups(stream, guess, groups, fitted)
    if _digest(images) != header.pixels:
        raise InputError(f"{source}: its pixels {CHANGED}")
    return images


def _code_groups(
    stream: Stream,
    guess: np.ndarray,
    groups: dict[Shape, np.ndarray],
    fitted: dict[int, Coefficients],
    take: Callable[[np.ndarray], np.ndarray] = lambda numbers: None,  # type: ignore[assignment,return-value]
) -> list[np.ndarray]:
    """Write or read all images, those of one shape together, and return them in their order."""
    images: list[np.ndarray] = [np.empty(0)] * len(guess)
    coders = {channels: PixelCoder(channels, coefficients) for channels, coefficients in fitted.items()}
    values = sum(int(np.prod(shape)) * len(numbers) for shape, numbers in groups.items())
    with progress_bar(total=values, desc="pixels", unit="value") as bar:
        for shape, numbers in groups.items():
            for rows in in_order(len(numbers), max(1, AT_ONCE // int(np.prod(shape)))):
                chosen = numbers[rows.start : rows.stop]
                near = bring_to(guess[chosen], shape)
                coded = coders[shape[0]].code(stream, near, take(chosen), bar.update)
                for number, image in zip(chosen, coded, strict=True):
                    images[number] = image
    return images


def _digest(images: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()
