"""Sound at another sampling rate, by one filter for each phase of the output.

Shapes: c channels, T samples.
"""

import math
from fractions import Fraction
from functools import lru_cache

import torch

ZEROS = 24  # zero crossings of the filter on each side
ROLL_OFF = 0.95  # share of the lower rate's band that passes
SHAPE = 9.0  # β of the Kaiser window: what lies beyond the band is 90 dB lower
FINEST = 1024  # periods of unusual ratios are rounded to this length, which changes the pitch by a millionth
PERIODS = 1024  # at once


def resample(waves: torch.Tensor, old_rate: int, new_rate: int) -> torch.Tensor:
    """Return waves (c, T) at another rate: (c, ⌈T · new_rate / old_rate⌉), the first sample at the same time."""
    if old_rate == new_rate:
        return waves
    ratio = Fraction(new_rate, old_rate).limit_denominator(FINEST)
    new, old = ratio.as_integer_ratio()
    filters, reach = _filters(new, old)  # (old + 2 reach, new)
    length = waves.shape[1]
    periods = -(-length // old)
    padded = torch.nn.functional.pad(waves, (reach, periods * old - length + reach))
    frames = padded.unfold(1, old + 2 * reach, old)  # (c, periods, old + 2 reach)
    pieces = [piece @ filters.to(waves.dtype) for piece in frames.split(PERIODS, dim=1)]
    return torch.cat(pieces, dim=1).flatten(1)[:, : math.ceil(length * ratio)]


@lru_cache(maxsize=8)
def _filters(new: int, old: int) -> tuple[torch.Tensor, int]:
    """Return the filter (old + 2 reach, new) of each of `new` outputs in a period of `old` inputs, and its reach."""
    band = ROLL_OFF * min(1.0, new / old)
    width = ZEROS / band
    reach = math.ceil(width)
    outputs = torch.arange(new, dtype=torch.float64) * old / new
    inputs = torch.arange(-reach, old + reach, dtype=torch.float64)
    apart = outputs - inputs[:, None]
    shape = torch.tensor(SHAPE, dtype=torch.float64)
    window = torch.special.i0(shape * (1 - (apart / width).square()).clamp_min(0).sqrt()) / torch.special.i0(shape)
    return torch.where(apart.abs() < width, band * torch.sinc(band * apart) * window, 0.0), reach
