"""The pixels that a decoder predicts, with the same bits on every machine if its layers allow it.

Shapes: n images, c channels, H W image, *shape the sites of each grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from codegrid.codes import Codes, Condition
from codegrid.data.images import to_stored
from codegrid.data.loading import in_order
from codegrid.noise import Noise
from codegrid.pipelines.generation.pairing import spoken_by
from codegrid.protocols import Tokenizer
from codegrid.same_bits import SameBits

from .machine import same_each_time


@torch.no_grad()
def predict(
    tokenizer: Tokenizer,
    codes: Codes,
    labels: torch.Tensor | None,
    classes: Sequence[str],
    batch_size: int,
    same_bits: SameBits | None,
    tell: Callable[[int], object] = lambda images: None,
) -> torch.Tensor:
    """Return the images (n, c, H, W) uint8, or sound, that codes (n, *shape) stand for, on the CPU.

    Args:
        labels: (n,) of these classes, for a decoder that is given them.
        same_bits: take several times as long, and get the same pixels in any batch and on other machines, if this
            `holds`: if the decoder has nothing but convolutions, linear layers and what works on single values.
        tell: called with the images that are done since the last call.
    """
    predicted = []
    for rows in in_order(len(codes[0]), batch_size):
        here = tuple(grid[rows.start : rows.stop].to(tokenizer.device) for grid in codes)
        given = Condition(None if labels is None else labels[rows.start : rows.stop])
        noise = Noise(0, rows.start, len(rows), tokenizer.device)  # for a decoder that draws
        with same_each_time(), same_bits or nullcontext():
            decoded = tokenizer.decode(here, given=spoken_by(tokenizer, given, classes), noise=noise)
        predicted.append(to_stored(tokenizer.signal.kind, decoded.cpu()))
        tell(len(rows))
    return torch.cat(predicted)
