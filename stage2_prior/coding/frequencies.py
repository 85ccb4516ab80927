"""From logits to whole numbers, by operations that have the same bits on every processor.

Shapes: n symbols, K alphabet.
"""

from __future__ import annotations

import numpy as np

from codegrid.errors import InputError

LOG2_E = np.float32(1.4426950408889634)
# of 2^f, for f from -1/2 to 1/2: Taylor's, ln(2)^k / k! from k = 7 to 0
SERIES = np.array(
    [1.52527338e-05, 1.54035304e-04, 1.33335581e-03, 9.61812911e-03, 5.55041087e-02, 2.40226507e-01, 6.93147181e-01, 1],
    np.float32,
)
LEAST = -40.0  # of a logit below the largest: e^-40 no longer counts
MANTISSA, BIAS = 23, 127  # of a float32
TOTAL = 2.0**23  # of the numbers: float32 adds them up without rounding


def frequencies(logits: np.ndarray) -> np.ndarray:
    """Return whole numbers (n, K) float32 in proportion to the softmax of logits (n, K) float32.

    They follow from the bits of the logits alone: NumPy's exp, and sums of floats, differ between processors.

    Raises `InputError` if the logits are not numbers.
    """
    highest = logits.max(1, keepdims=True)
    if not np.isfinite(highest).all():
        raise InputError("the prior's logits are not numbers: train it again")
    y = np.maximum(logits - highest, np.float32(LEAST))
    y *= LOG2_E
    whole = np.rint(y)
    y -= whole
    power = np.full_like(y, SERIES[0])
    for coefficient in SERIES[1:]:
        power *= y
        power += coefficient
    power *= ((whole.astype(np.int32) + BIAS) << MANTISSA).view(np.float32)  # 2^whole
    power *= np.float32(TOTAL)
    return share_out(np.floor(power, out=power))


def share_out(weights: np.ndarray) -> np.ndarray:
    """Return whole numbers (n, K) float32 in proportion to whole weights (n, K) float32 up to 2^24, not all 0.

    They are 0 for very small weights: the coder gives these its smallest probability. Their sums are about 2^23, so
    that float32 adds them up without rounding.
    """
    scale = TOTAL / weights.sum(1, keepdims=True, dtype=np.float64)  # a sum of whole numbers: exact in any order
    shared = weights * scale.astype(np.float32)
    return np.floor(shared, out=shared)
