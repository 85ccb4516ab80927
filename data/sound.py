"""Sound as models see it: windows of one length, cut from clips that are kept in memory as int16.

Shapes: n windows, b batch, T samples of a window, L samples of a clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from codegrid.codes import Signal
from codegrid.tensors import digest_of, sha256

from .found import Found, count_classes
from .images import LOUDEST, Described, ImageBatch
from .loading import Indices, item_numbers


class Clip(NamedTuple):
    """A recording."""

    name: str  # the printable path of its file
    wave: np.ndarray  # (L,) int16
    speaker: str = ""
    text: str = ""  # what is said
    segments: tuple[tuple[float, str], ...] = ()  # the end of each phone in seconds, and the phone


class Window(NamedTuple):
    """A stretch of a clip."""

    clip: int  # number of the clip
    start: int  # its first sample
    length: int  # of the clip's samples, 1 ... T; silence follows


class SoundDataset(Described):
    """Windows of clips, with the methods of `ImageDataset`.

    A clip is cut into windows one after the other. The last one ends where the clip ends, so that it may overlap the
    one before; a clip shorter than a window is followed by silence.

    Args:
        clips: the recordings, all of one sampling rate.
        length: T.
        rate: samples per second.
        speakers: the names of all speakers, in the order of their labels; empty if they are unknown.
        found: a description of what was read; by default it is made from the clips.
    """

    def __init__(
        self, clips: Sequence[Clip], length: int, rate: float, speakers: Sequence[str] = (), found: Found | None = None
    ) -> None:
        self.clips, self.rate, self.classes = list(clips), rate, list(speakers)
        self.in_channels, self.image_size = 1, (length,)
        self.windows = [window for number, clip in enumerate(clips) for window in cut(number, len(clip.wave), length)]
        labels = [self.classes.index(clip.speaker) for clip in clips] if speakers else None
        self.labels = None if labels is None else torch.tensor([labels[window.clip] for window in self.windows])
        self.files: list[str] | None = [self.clips[window.clip].name for window in self.windows]
        of_classes = count_classes(self.labels, self.classes)
        self.found = found or Found(len(self), of_classes, item=self.signal.item)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> ImageBatch:
        waves, labels, lengths = self.batch([index])
        assert lengths is not None
        return ImageBatch(waves[0], None if labels is None else labels[0], lengths[0])

    def batch(self, indices: Indices) -> ImageBatch:
        """Return some windows (b, 1, T) int16, in the given order."""
        numbers = item_numbers(indices)
        waves = np.zeros((len(numbers), 1, *self.image_size), dtype=np.int16)
        for row, number in zip(waves[:, 0], numbers.tolist(), strict=True):
            clip, start, length = self.windows[number]
            row[:length] = self.clips[clip].wave[start : start + length]
        labels = None if self.labels is None else self.labels[torch.from_numpy(numbers)]
        lengths = torch.tensor([self.windows[number].length for number in numbers.tolist()])
        return ImageBatch(torch.from_numpy(waves), labels, lengths)

    @property
    def signal(self) -> Signal:
        """The signal that a tokenizer for this sound has."""
        return Signal("sound", self.in_channels, self.image_size, self.rate)

    def fingerprint(self) -> str:
        """Return a digest that differs between different data sets."""
        waves = [sha256(np.ascontiguousarray(clip.wave)) for clip in self.clips]
        speakers = [clip.speaker for clip in self.clips]
        return digest_of([list(self.image_size), self.rate, self.classes, speakers, waves])

    def variance(self) -> float:
        """Return the variance of all samples of the clips, in [-1, 1]."""
        count = sum(len(clip.wave) for clip in self.clips)
        total = sum(float(clip.wave.sum(dtype=np.float64)) for clip in self.clips)
        squares = sum(float(np.square(clip.wave, dtype=np.float64).sum()) for clip in self.clips)
        return (squares / count - (total / count) ** 2) / LOUDEST**2


def cut(clip: int, samples: int, length: int) -> list[Window]:
    """Return the windows of a clip with so many samples."""
    starts = [*range(0, samples - length, length), max(0, samples - length)]
    return [Window(clip, start, min(length, samples)) for start in starts]
