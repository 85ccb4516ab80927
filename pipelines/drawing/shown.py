"""Pictures of whatever a signal is: images as they are, sound as spectrograms.

Shapes: n items, c channels, H W image, T samples.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from codegrid.codes import Signal

WINDOW, COLUMNS = 256, 128  # samples of a spectrum, at most; spectra of a picture, about
RANGE = 80.0  # decibels between black and white


def as_pictures(signal: Signal, x: torch.Tensor) -> torch.Tensor:
    """Return pictures (n, c, H, W) in [-1, 1] of some items (n, c, *size) of a signal in [-1, 1]."""
    return PICTURES[signal.kind](x)


def spectrograms(waves: torch.Tensor) -> torch.Tensor:
    """Return the spectrograms (n, 1, H, W) of waves (n, 1, T): low frequencies below, loud white, 80 dB below black."""
    waves = waves.float().cpu().clamp(-1, 1).mean(1)
    window = min(WINDOW, 2 ** max(3, waves.shape[1].bit_length() - 2))
    waves = F.pad(waves, (0, max(0, window - waves.shape[1])))
    hop = max(1, math.ceil(waves.shape[1] / COLUMNS))
    shape = torch.hann_window(window)
    spectra = torch.stft(waves, window, hop, window=shape, pad_mode="constant", return_complex=True).abs()
    decibels = 20 * torch.log10((2 * spectra / shape.sum()).clamp_min(1e-6))
    return (2 * decibels / RANGE + 1).clamp(-1, 1).flip(1)[:, None]


PICTURES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"image": lambda images: images, "sound": spectrograms}
