"""µ-law (ITU-T G.711): the 256 classes of a sample of sound, finer near silence, as ears are.

y = sign(x) ln(1 + µ |x|) / ln(1 + µ),   class = ⌊(y + 1) / 2 · µ + ½⌋,   µ = 255
"""

import math

import torch

MU = 255
CLASSES = MU + 1
SILENCE = 128  # the class of 0


def to_classes(x: torch.Tensor) -> torch.Tensor:
    """Return the classes 0 ... 255, int64, of samples in [-1, 1]; those beyond are clipped."""
    x = x.to(torch.promote_types(x.dtype, torch.float32)).clamp(-1, 1)
    y = x.sign() * torch.log1p(MU * x.abs()) / math.log1p(MU)
    return ((y + 1) / 2 * MU + 0.5).floor().long().clamp(0, MU)


def from_classes(classes: torch.Tensor) -> torch.Tensor:
    """Return the samples in [-1, 1], float32, that classes 0 ... 255 stand for."""
    y = classes.float() * (2 / MU) - 1
    return y.sign() * torch.expm1(y.abs() * math.log1p(MU)) / MU
