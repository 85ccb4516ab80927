"""Mel-cepstra of sound: what is said, more than who says it, at what pitch, or how loud.

Shapes: b batch, T samples, f frames, m mel bands, d coefficients, D embedding_dim, t codes.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import torch
import torch.nn.functional as F
from torch import nn

from codegrid.errors import InputError
from codegrid.padding import mean_of_counted

BANDS, COEFFICIENTS = 40, 15
WINDOW, STEP = 0.025, 0.01  # seconds: of a frame, and at most from one to the next
FLOOR = 1e-8  # power of a band, of sound with a variance of 1; far below what can be heard


class Cepstra(nn.Module):
    """Mel-cepstra of waves, √n · c_n for n = 1 ... 15, from frames of 25 ms.

        ln(amplitude) = c_0 + 2 Σ c_n cos(π n (band + ½) / bands)

    Without c_0 they do not depend on how loud a wave is. The squared distance of two frames, Σ n (c_n − c'_n)², is that
    of Martin (2000).

    Args:
        rate: samples per second.
        strides: of an encoder. The first ones, whose product is the step from a frame to the next, are the most that
            keep it to 10 ms, or one; `num_strides` says how many.

    Raises `InputError` if the rate is not known.

    Examples:
        >>> Cepstra(16_000, (5, 4, 4, 4, 2))(torch.zeros(1, 1, 1600)).shape
        torch.Size([1, 15, 20])
    """

    shape: torch.Tensor  # of a frame
    filters: torch.Tensor
    cosines: torch.Tensor

    def __init__(self, rate: float | None, strides: Sequence[int]) -> None:
        super().__init__()
        if rate is None:
            raise InputError("`signal` has no rate: cepstra need that of its samples")
        self.num_strides = max(1, sum(step <= STEP * rate for step in accumulate(strides, mul)))
        self.step = math.prod(strides[: self.num_strides])
        self.window = max(self.step, round(WINDOW * rate))
        places = (torch.arange(BANDS)[:, None] + 0.5) / BANDS
        numbers = torch.arange(1, COEFFICIENTS + 1)
        self.register_buffer("shape", torch.hann_window(self.window), persistent=False)
        self.register_buffer("filters", mel_filters(rate, self.window), persistent=False)
        cosines = torch.cos(math.pi * places * numbers) * numbers.sqrt() / BANDS
        self.register_buffer("cosines", cosines, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the coefficients (b, d, f) of x (b, 1, f · step), of frames around each `step` samples.

        Beyond both ends is silence.
        """
        more = self.window - self.step
        padded = F.pad(x[:, 0], (more // 2, more - more // 2))
        frames = padded.to(torch.promote_types(x.dtype, torch.float32)).unfold(1, self.window, self.step)
        spectra = torch.fft.rfft(frames * self.shape)
        power = spectra.real.square() + spectra.imag.square()
        logs = (power @ self.filters.to(power.dtype)).clamp_min(FLOOR).log() / 2
        return (logs @ self.cosines.to(logs.dtype)).mT.to(x.dtype)


class CepstralHead(nn.Module):
    """A linear layer that tells the cepstra of a code's own samples from its vector alone.

    A decoder sees the codes around, too, and asks first for what is loud. This asks every code what is said.
    """

    def __init__(self, width: int, rate: float | None, strides: Sequence[int]) -> None:
        super().__init__()
        self.cepstra = Cepstra(rate, strides)
        self.frames = math.prod(strides) // self.cepstra.step
        self.layer = nn.Conv1d(width, COEFFICIENTS, 1)

    def forward(self, vectors: torch.Tensor, x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        """Return the squared distance () to the mean of the frames, of vectors (b, D, t) and waves x (b, 1, t · hop).

        It is a mean over codes; only the first `lengths` (b,) count, if lengths are given.
        """
        wanted = F.avg_pool1d(self.cepstra(x), self.frames)
        return mean_of_counted((self.layer(vectors) - wanted).square().sum(1), lengths)


def mel_filters(rate: float, window: int) -> torch.Tensor:
    """Return triangular filters (window // 2 + 1, m), evenly spaced on the mel scale up to half the rate."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, BANDS + 2) / 2595) - 1)
    apart = rate / window
    pitches = torch.arange(window // 2 + 1)[:, None] * apart
    mid = edges[1:-1]
    # none lies between two pitches, where its power would be 0 however loud the sound
    low, high = torch.minimum(edges[:-2], mid - apart), torch.maximum(edges[2:], mid + apart)
    return torch.minimum((pitches - low) / (mid - low), (high - pitches) / (high - mid)).clamp_min(0)
