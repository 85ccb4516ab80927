"""Pixels as symbols of an entropy coder, given a prediction of them: what a decoder misses, bit for bit.

A pixel is predicted once more, linearly: from the prediction around it, and from the errors of the prediction at pixels
that are coded already. How far it is off is counted for each channel, and for each degree of unrest around it; these
counts are the model. All numbers are whole, so that they are the same on every machine.

Shapes: n images, c channels, H W image, f features of a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from codegrid.stage2_prior.coding.frequencies import share_out
from codegrid.stage2_prior.coding.streams import Stream

BEFORE = ((0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0))  # (down, right) of a pixel: coded before it
AROUND = ((0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))  # in the prediction
OF_OTHERS = ((0, 0), (0, -1), (-1, 0))  # in the channels before its own
RESTLESS = ((0, -1), (-1, 0), (-1, -1), (-1, 1))  # pixels whose errors tell how uncertain the next one is
MARGIN = 2  # pixels around an image
FRACTION = 12  # bits of a coefficient behind the point
LEVELS = 256  # values of a pixel
BOUNDS = (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48, 64, 90, 130, 200)  # of the unrest, each a class of its own
EDGES = (0, 2, 8, 20, 50, 100)  # in the prediction, from the least to the greatest value around a pixel
OFF = (0, 3, 12)  # between a flat part and the decoder's prediction: bounds of classes, too
SEEN, BESIDE, NEAR = 24, 8, 3  # added to the counts of an error, of those one beside it, and two beside it
MOST = 2**20  # of a count; then all of its class are halved
FITTED = 400_000  # values that the coefficients are fitted to
MAX_COEFFICIENT = 2**20

Coefficients = list[list[int]]  # of each channel, (f,)


class Place(NamedTuple):
    """A pixel's channel and place in an image with its margin."""

    channel: int
    row: int
    column: int

    def at(self, numbers: np.ndarray, down: int, right: int, channel: int | None = None) -> np.ndarray:
        """Return the numbers (n,) of a neighbour, out of (c, H, W, n) with the margin."""
        of = self.channel if channel is None else channel
        found: np.ndarray = numbers[of, self.row + down, self.column + right]
        return found


def count_features(channel: int) -> int:
    """Return f for a channel."""
    return len(BEFORE) + len(AROUND) + channel * len(OF_OTHERS)


def fit_coefficients(images: np.ndarray, predicted: np.ndarray) -> Coefficients:
    """Fit the linear prediction to images (n, c, H, W) uint8 and their predictions."""
    step = max(1, images[:, 0].size // FITTED)
    some = np.s_[:: min(step, max(1, len(images) // 16))]
    truth, guess = (_with_margin(each[some], mode) for each, mode in ((images, "edge"), (predicted, "edge")))
    errors = _with_margin(images[some].astype(np.int32) - predicted[some], "constant")
    every = max(1, images[some][:, 0].size // FITTED)  # rows: of few large images not all are needed
    return [_fit(channel, truth, guess, errors, every) for channel in range(images.shape[1])]


def _fit(channel: int, truth: np.ndarray, guess: np.ndarray, errors: np.ndarray, every: int) -> list[int]:
    def shifted(numbers: np.ndarray, down: int, right: int, of: int = channel) -> np.ndarray:
        height, width = numbers.shape[1] - 2 * MARGIN, numbers.shape[2] - 2 * MARGIN
        top, left = MARGIN + down, MARGIN + right
        return numbers[of, top : top + height : every, left : left + width].ravel().astype(np.float64)

    of_others = [shifted(errors, *place, other) for other in range(channel) for place in OF_OTHERS]
    around = [shifted(guess, *place) - shifted(guess, 0, 0) for place in AROUND]
    features = np.stack([*(shifted(errors, *place) for place in BEFORE), *around, *of_others])
    wanted, weights = shifted(errors, 0, 0), np.ones(features.shape[1])
    for _ in range(3):  # towards least absolute errors, which cost the fewest bits
        scaled = features * weights
        system = scaled @ features.T + np.eye(len(features))
        solved = np.linalg.solve(system, scaled @ wanted)
        weights = 1 / (1 + np.abs(wanted - solved @ features))
    limit = MAX_COEFFICIENT
    return [int(number) for number in np.clip(np.rint(solved * 2**FRACTION), -limit, limit)]


def _with_margin(images: np.ndarray, mode: Any) -> np.ndarray:
    """Return images (n, c, H, W) as (c, H, W, n) int32 with a margin, repeating the edge or of zeros."""
    pixels = np.pad(images.astype(np.int32), ((0, 0), (0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)), mode)
    return np.ascontiguousarray(pixels.transpose(1, 2, 3, 0))


class PixelCoder:
    """Writes or reads the pixels of images; it learns from all that it has coded.

    Args:
        channels: c.
        coefficients: as `fit_coefficients` returns them.
    """

    def __init__(self, channels: int, coefficients: Coefficients) -> None:
        self.coefficients = [np.array(of_channel, np.int32) for of_channel in coefficients]
        self.counts = np.stack([_first_counts()] * channels)  # (c, classes of unrest, 2 · LEVELS - 1)
        self.class_of = np.searchsorted(BOUNDS, np.arange(len(RESTLESS) * 3 * LEVELS), side="left").astype(np.int64)

    def code(
        self,
        stream: Stream,
        predicted: np.ndarray,
        images: np.ndarray | None = None,
        tell: Callable[[int], object] = lambda pixels: None,
    ) -> np.ndarray:
        """Write images (n, c, H, W) uint8, or read them, given their predictions; return them.

        Args:
            stream: either side of a coder.
            predicted: (n, c, H, W) uint8.
            images: to write; ignored in reading.
            tell: called with the values that are done since the last call.
        """
        guess = _with_margin(predicted, "edge")
        bases, edges = self._bases(guess), _edges_of(guess)
        errors, misses = np.zeros_like(guess), np.zeros_like(guess)
        wanted = None if images is None else np.ascontiguousarray(images.transpose(1, 2, 3, 0)).astype(np.int32)
        coded = np.empty((*predicted.shape[1:], len(predicted)), np.uint8)
        for place in _places(predicted.shape):
            inside = place.channel, place.row - MARGIN, place.column - MARGIN
            center = self._center(place, bases[inside], errors)
            unrest = self._unrest(place, misses)
            self._look_for_flat_parts(place, guess, errors, center, unrest)
            unrest = unrest * len(EDGES) + edges[inside]
            own = None if wanted is None else wanted[inside]
            values = stream.code(self._frequencies(place.channel, unrest, center), own)
            coded[inside] = values
            errors[place], misses[place] = values - guess[place], values - center
            self._learn(place.channel, unrest, misses[place])
            if place.column == MARGIN and place.channel == 0:
                self._halve()
            tell(len(predicted))
        return np.ascontiguousarray(coded.transpose(3, 0, 1, 2))

    def _bases(self, guess: np.ndarray) -> np.ndarray:
        """Return the part of the linear prediction (c, H, W, n) that depends on the decoder's prediction alone."""
        inner = slice(MARGIN, -MARGIN)
        bases = guess[:, inner, inner] << FRACTION
        height, width = bases.shape[1:3]
        for channel, of_channel in enumerate(self.coefficients):
            for (down, right), coefficient in zip(AROUND, of_channel[len(BEFORE) :], strict=False):
                top, left = MARGIN + down, MARGIN + right
                moved = guess[channel, top : top + height, left : left + width]
                bases[channel] += coefficient * (moved - guess[channel, inner, inner])
        return bases

    def _center(self, place: Place, base: np.ndarray, errors: np.ndarray) -> np.ndarray:
        """Return the likeliest value (n,) of a pixel."""
        of_channel = self.coefficients[place.channel]
        total = base + (1 << FRACTION - 1)
        for offset, coefficient in zip(BEFORE, of_channel, strict=False):
            total += coefficient * place.at(errors, *offset)
        of_others = iter(of_channel[len(BEFORE) + len(AROUND) :])
        for other in range(place.channel):
            for offset in OF_OTHERS:
                total += next(of_others) * place.at(errors, *offset, other)
        return np.clip(total >> FRACTION, 0, LEVELS - 1)

    def _unrest(self, place: Place, misses: np.ndarray) -> np.ndarray:
        """Return the class of unrest (n,) around a pixel."""
        total = sum(np.abs(place.at(misses, *offset)) for offset in RESTLESS)
        if place.channel:
            total = total + 2 * np.abs(place.at(misses, 0, 0, place.channel - 1))
        classes: np.ndarray = self.class_of[total]
        return classes

    def _look_for_flat_parts(
        self, place: Place, guess: np.ndarray, errors: np.ndarray, center: np.ndarray, unrest: np.ndarray
    ) -> None:
        """Take the value of all pixels before one for the likeliest (n,) if they are equal, and another class (n,)."""
        left, *others = (place.at(guess, *offset) + place.at(errors, *offset) for offset in RESTLESS)
        flat = (left == others[0]) & (left == others[1]) & (left == others[2])
        off = np.abs(left - center)[flat]
        unrest[flat] = len(BOUNDS) + 1 + np.searchsorted(OFF, off)
        center[flat] = left[flat]

    def _frequencies(self, channel: int, unrest: np.ndarray, center: np.ndarray) -> np.ndarray:
        """Return the frequencies (n, LEVELS) of a pixel's values: counts of errors, moved to the likeliest value."""
        windows = sliding_window_view(self.counts[channel], LEVELS, axis=1)  # (classes, LEVELS, LEVELS)
        return share_out(windows[unrest, LEVELS - 1 - center].astype(np.float32))

    def _learn(self, channel: int, unrest: np.ndarray, missed: np.ndarray) -> None:
        counts, at = self.counts[channel], missed + LEVELS - 1
        for weight, offset in ((SEEN, 0), (BESIDE, -1), (BESIDE, 1), (NEAR, -2), (NEAR, 2)):
            np.add.at(counts, (unrest, np.clip(at + offset, 0, counts.shape[1] - 1)), weight)

    def _halve(self) -> None:
        large = self.counts.max(2) > MOST
        if large.any():
            self.counts[large] = (self.counts[large] + 1) >> 1


def _places(shape: tuple[int, ...]) -> Iterator[Place]:
    """Yield the places of the pixels of images (n, c, H, W): all channels of one before the next."""
    _, channels, height, width = shape
    for row in range(MARGIN, MARGIN + height):
        for column in range(MARGIN, MARGIN + width):
            for channel in range(channels):
                yield Place(channel, row, column)


def _first_counts() -> np.ndarray:
    """Return counts (classes, 2 · LEVELS - 1) before anything is coded: they fall more slowly the more unrest."""
    bounds = (*BOUNDS, 2 * BOUNDS[-1], 0, *OFF)
    counts = np.ones((len(bounds), 2 * LEVELS - 1), np.int32)
    for number, bound in enumerate(bounds):
        weight, share = 1 << 10, 256 * (bound + 2) // (bound + 2 + len(RESTLESS))  # of 256: from a value to the next
        for distance in range(LEVELS):
            counts[number, LEVELS - 1 - distance] += weight
            counts[number, LEVELS - 1 + distance] += weight if distance else 0
            weight = weight * share >> 8
    return np.repeat(counts, len(EDGES), 0)


def _edges_of(guess: np.ndarray) -> np.ndarray:
    """Return a class (c, H, W, n) of how much the decoder's prediction (c, H, W, n) varies around each pixel."""
    inner = slice(MARGIN, -MARGIN)
    middle = guess[:, inner, inner]
    height, width = middle.shape[1:3]
    low, high = middle.copy(), middle.copy()
    for down, right in AROUND:
        top, left = MARGIN + down, MARGIN + right
        moved = guess[:, top : top + height, left : left + width]
        np.minimum(low, moved, out=low)
        np.maximum(high, moved, out=high)
    return np.searchsorted(EDGES, high - low, side="right") - 1
