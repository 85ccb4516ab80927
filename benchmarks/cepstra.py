"""Cepstra of sound, which judge voices and tell phonemes without any learnt network.

Shapes: T samples, f frames, m mel bands, d coefficients, n points, K centres.
"""

import math
from functools import lru_cache

import numpy as np
import torch

from codegrid.stage1_vqvae.cepstra import BANDS, WINDOW, mel_filters

filters_of = lru_cache(maxsize=8)(mel_filters)
QUIET = 30.0  # decibels below a clip's loudest frame: quieter frames are not compared


def cepstra(wave: torch.Tensor, rate: int, hop: float, count: int) -> torch.Tensor:
    """Return the coefficients 0 ... count - 1 (f, d) of windows of 25 ms, `hop` seconds apart, the first at 0.

    c_n is the mean over 40 mel bands of ln(amplitude) · cos, so that ln(amplitude) = c_0 + 2 Σ c_n cos.
    """
    window, step = round(WINDOW * rate), round(hop * rate)
    shape = torch.hann_window(window)
    spectra = torch.stft(wave.float(), window, step, window=shape, pad_mode="constant", return_complex=True).abs()
    mels = (spectra.square().mT @ filters_of(rate, window)).clamp_min(1e-8).log() / 2
    places = (torch.arange(BANDS) + 0.5) / BANDS
    return mels @ torch.cos(math.pi * places[:, None] * torch.arange(count)) / BANDS


def loud_cepstra(wave: torch.Tensor, rate: int, count: int = 24) -> np.ndarray:
    """Return the coefficients 1 ... `count` (f, d) of each 5 ms that is not quiet: what is heard, at any loudness."""
    found = cepstra(wave, rate, 0.005, count + 1)
    decibels = found[:, 0] * (20 / math.log(10))
    return found[decibels > decibels.max() - QUIET, 1:].numpy()


def cepstral_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mel-cepstral distance in dB of two sequences (f, d), the mean along the best warping of time."""
    apart = 10 / math.log(10) * np.sqrt(2 * np.square(first[:, None] - second[None]).sum(2))
    # the sum of the best path to each pair of frames, and its length
    total = np.full((len(first) + 1, len(second) + 1), np.inf)
    length = np.zeros(total.shape)
    total[0, 0] = 0
    for row in range(1, len(first) + 1):
        for column in range(1, len(second) + 1):
            before = ((row - 1, column - 1), (row - 1, column), (row, column - 1))
            best = min(before, key=lambda place: total[place])
            total[row, column] = total[best] + apart[row - 1, column - 1]
            length[row, column] = length[best] + 1
    return float(total[-1, -1] / length[-1, -1])


def k_means(points: torch.Tensor, count: int, steps: int = 30, seed: int = 0) -> torch.Tensor:
    """Return the centres (K, d) of points (n, d); a centre without points begins again at one of them."""
    generator = torch.Generator().manual_seed(seed)
    centres = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    for _ in range(steps):
        nearest = nearest_of(points, centres)
        counts = nearest.bincount(minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        others = points[torch.randint(len(points), (len(centres),), generator=generator)]
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], others)
    return centres


def nearest_of(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Return the number of the nearest centre of each point (n,)."""
    return torch.cat([torch.cdist(some, centres).argmin(1) for some in points.split(8192)])
