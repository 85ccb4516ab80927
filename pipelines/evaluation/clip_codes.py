"""Codes of whole recordings, which are longer or shorter than the windows that a tokenizer is trained on.

Shapes: t codes of a clip, q grids.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from codegrid.data.images import to_float
from codegrid.data.sound import Clip
from codegrid.errors import InputError


class ClipCodes(NamedTuple):
    """The codes of a recording."""

    clip: Clip
    codes: torch.Tensor  # (t, q) int64


@torch.no_grad()
def encode_clips(tokenizer: Any, clips: Iterable[Clip]) -> list[ClipCodes]:
    """Encode each clip as a whole. Raises `InputError` if the tokenizer's grids are not all of one size."""
    if len({grid.shape for grid in tokenizer.layout}) > 1:
        raise InputError(
            "a code of grids of several sizes does not stand for one moment: use a tokenizer with one size"
        )
    found = []
    for clip in clips:
        wave = to_float(torch.from_numpy(clip.wave)).to(tokenizer.device)
        found.append(ClipCodes(clip, torch.stack(tokenizer.encode(wave[None, None]), dim=-1)[0].cpu()))
    return found
