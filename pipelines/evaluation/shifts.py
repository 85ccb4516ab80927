"""The share of codes of sound that stay the same under a shift of a few samples.

Shapes: b batch, T samples, t codes.
"""

from collections.abc import Iterable
from typing import Any

import torch

from codegrid.codes import HIDDEN
from codegrid.data.images import ImageBatch, to_float
from codegrid.protocols import Tokenizer

from .reconstruction import hide_padding

SHIFTS = range(1, 9)  # samples


@torch.no_grad()
def measure_shifts(tokenizer: Tokenizer, batches: Iterable[ImageBatch]) -> dict[str, Any]:
    """Return the share of codes that are the same if the sound begins 1 to 8 samples later; padding does not count.

    `shift_agreement` is the mean, `shift_agreement_by_samples` has it for each shift. Empty if windows are shorter than
    that. The tokenizer must be in eval mode.
    """
    most, same, count = SHIFTS[-1], torch.zeros(len(SHIFTS), dtype=torch.float64), 0
    for batch in batches:
        x = to_float(batch.images.to(tokenizer.device))
        if x.shape[2] <= most:
            return {}
        lengths = None if batch.lengths is None else (batch.lengths - most).clamp_min(0)
        before = hide_padding(tokenizer, tokenizer.encode(x[..., most:]), lengths)
        count += sum(int((grid != HIDDEN).sum()) for grid in before)
        for number, shift in enumerate(SHIFTS):
            after = tokenizer.encode(x[..., most - shift : -shift])
            same[number] += sum(int((was == now).sum()) for was, now in zip(before, after, strict=True))
    if not count:
        return {}
    return {"shift_agreement": float(same.mean() / count), "shift_agreement_by_samples": (same / count).tolist()}
