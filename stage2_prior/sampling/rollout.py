"""Continuing videos in code space, frame after frame, under chosen actions.

Shapes: n videos, b batch, m given frames, F new frames, f context_frames, *shape the sites of a grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from codegrid.codes import HIDDEN, Codes, Condition
from codegrid.errors import InputError
from codegrid.limits import BatchSize, NumSamples, Seed, check_value
from codegrid.noise import Noise
from codegrid.sampling_config import DrawingSettings, SamplingConfig, sampling_configs


def roll_out(
    prior: Any,
    start: Codes,
    actions: Tensor | None = None,
    frames: int = 10,
    seed: int = 0,
    first_index: int = 0,
    batch_size: int = 64,
    backend: str = "auto",
    **settings: Unpack[DrawingSettings],
) -> Codes:
    """Draw the next frames of videos, each from the frames before it, and return their codes (n, F, *shape).

    Args:
        prior: a prior over frames, in eval mode.
        start: the given frames (n, m, *shape) of each grid, oldest first, HIDDEN where unknown. Any m will do: the
            prior sees the last ones, and as many as it was trained with.
        actions: (n, m + F - 1), the action taken at each frame, given or new, but the last one; the m-th leads to the
            first new frame. HIDDEN where unknown. None: all unknown.
        frames: F.
        seed, first_index: video i follows from (seed, first_index + i) alone.
        batch_size: videos drawn at once.
        backend: as for `sample`; all draw the same codes, up to rounding.
        settings: fields of `SamplingConfig`.

    Raises `InputError` if the prior is not one over frames, or codes or actions do not fit it.

    Examples:
        >>> from codegrid import Grid
        >>> from codegrid.stage2_prior import VideoPrior
        >>> prior = VideoPrior((Grid((5, 5), 16),), num_actions=3, num_layers=2, context_frames=2).eval()
        >>> start = (torch.zeros(4, 2, 5, 5, dtype=torch.int64),)
        >>> (codes,) = roll_out(prior, start, torch.ones(4, 4, dtype=torch.int64), frames=3)
        >>> codes.shape
        torch.Size([4, 3, 5, 5])
    """
    for name, value, hint in (
        ("frames", frames, NumSamples), ("seed", seed, Seed), ("first_index", first_index, Seed),
        ("batch_size", batch_size, BatchSize),
    ):  # fmt: skip
        check_value(name, value, hint)
    (config,) = sampling_configs(1, **settings)
    count = len(start[0])
    batches = []
    for first in range(0, count, batch_size):
        rows = slice(first, min(first + batch_size, count))
        noise = Noise(seed, first_index + first, rows.stop - first, prior.device)
        own = None if actions is None else actions[rows]
        steps = next_frames(prior, tuple(grid[rows] for grid in start), own, frames, noise, config, backend)
        batches.append([torch.stack(grids, 1) for grids in zip(*steps, strict=True)])
    return tuple(torch.cat(grids) for grids in zip(*batches, strict=True))


def next_frames(
    prior: Any,
    start: Codes,
    actions: Tensor | None,
    frames: int,
    noise: Noise,
    config: SamplingConfig,
    backend: str = "auto",
) -> Iterator[Codes]:
    """Yield the codes (b, *shape) of each new frame; the n-th is drawn with the noise `of("frame", n)`.

    All arguments are those of `roll_out`, for a batch.
    """
    length = getattr(prior, "context_frames", 0)
    if not length:
        raise InputError("`prior`: it does not draw frames of videos: give one trained with `model` video")
    if len(start) != len(prior.layout):
        raise InputError(f"`start` has {len(start)} grids, but a frame has {len(prior.layout)}: give them all")
    given = start[0].shape[1]
    if actions is not None and tuple(actions.shape) != (noise.count, given + frames - 1):
        needed = (noise.count, given + frames - 1)
        found = tuple(actions.shape)
        raise InputError(f"`actions` of shape {found}, but {needed} is needed: one at each frame but the last")
    seen = [tuple(grid[:, number].to(prior.device) for grid in start) for number in range(given)]
    unknown = tuple(torch.full((noise.count, *grid.shape), HIDDEN, device=prior.device) for grid in prior.layout)
    for number in range(frames):
        lacking = max(0, length - len(seen))
        window = [unknown] * lacking + seen[-length:]
        taken = None
        if actions is not None:
            taken = actions[:, : given + number][:, -length:]
            taken = torch.nn.functional.pad(taken, (length - taken.shape[1], 0), value=HIDDEN).to(prior.device)
        condition = Condition(codes=tuple(grid for frame in window for grid in frame), actions=taken)
        (*_, last) = prior.sample(condition, noise.of("frame", number), config, None, backend)
        seen.append(last.codes)
        yield last.codes
