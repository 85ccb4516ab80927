"""Checks that samplers make before their first step, and the tensors that they start from.

Shapes: b batch, *shape the sites of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from codegrid.budget import check_memory
from codegrid.codes import Codes, Condition, Grid, Known, Layout
from codegrid.errors import InputError
from codegrid.protocols import Prior
from codegrid.sampling_config import SamplingConfig


def check_request(prior: Prior, given: Condition, config: SamplingConfig) -> None:
    """Raise `InputError` if a prior is not in eval mode, or does not support a control that is set."""
    if getattr(prior, "training", False):
        raise InputError("`prior` is in train mode: call prior.eval() first")
    config.check_controls(prior)
    if config.guided and given.labels is None and given.text is None:
        raise InputError(f"`guidance_scale` {config.guidance_scale}: guidance needs `labels` to guide to")


def with_hidden(given: Condition) -> Condition:
    """Return the rows of a condition, followed by the same rows with labels and text hidden: (2b, ...)."""
    return Condition(*(_join(shown, hidden) for shown, hidden in zip(given, given.hidden(), strict=True)))


def _join(shown: Any, hidden: Any) -> Any:
    if shown is None:
        return None
    if isinstance(shown, tuple):
        return tuple(_join(*pair) for pair in zip(shown, hidden, strict=True))
    return torch.cat([shown, hidden])


def spread_known(known: Known | None, layout: Layout, count: int, device: torch.device) -> Known | None:
    """Return the known codes and masks expanded to (b, *shape) for each grid; None if no site is kept.

    Codes may be given as (1, *shape), and masks also as (*shape): the same for all samples.

    Raises `InputError` if they do not fit the grids.
    """
    if known is None:
        return None
    if not len(known.codes) == len(known.mask) == len(layout):
        raise InputError(f"`known` has codes of {len(known.codes)} grids, but {len(layout)} are drawn: give them all")
    pairs = [_spread(*part, count, device) for part in zip(layout, known.codes, known.mask, strict=True)]
    if not any(bool(mask.any()) for _, mask in pairs):
        return None
    codes, masks = zip(*pairs, strict=True)
    return Known(codes, masks)


def start_grids(
    layout: Layout, count: int, device: torch.device, known: Known | None = None
) -> tuple[Codes, tuple[Tensor, ...]]:
    """Return codes (b, *shape) int64 of each grid, 0 except for known ones, and masks (b, *shape) of the known ones.

    Raises `InputError` if they would not fit in memory.
    """
    codes_and_masks = 9 * count * sum(grid.num_sites for grid in layout)
    check_memory(f"the codes of {count:,} samples", codes_and_masks, "draw fewer at once (`batch_size`)")
    if known is not None:
        codes = tuple(torch.where(kept, grid, 0).contiguous() for grid, kept in zip(*known, strict=True))
        return codes, tuple(kept.clone(memory_format=torch.contiguous_format) for kept in known.mask)
    shapes = [(count, *grid.shape) for grid in layout]
    codes = tuple(torch.zeros(shape, dtype=torch.int64, device=device) for shape in shapes)
    return codes, tuple(torch.zeros_like(grid, dtype=torch.bool) for grid in codes)


def flatten(grids: Sequence[Tensor]) -> list[Tensor]:
    """Return views (b, sites) of grids (b, *shape), the sites in raster order."""
    return [grid.view(len(grid), -1) for grid in grids]


def _spread(grid: Grid, codes: Tensor, mask: Tensor, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    whole = (count, *grid.shape)
    for name, tensor in (("codes", codes), ("mask", mask)):
        fitting = {whole, (1, *grid.shape)} | ({grid.shape} if name == "mask" else set())
        if tuple(tensor.shape) not in fitting:
            raise InputError(f"`known`: a {name} of shape {tuple(tensor.shape)}, but {whole} is needed")
    codes, mask = codes.to(device, torch.int64).expand(whole), mask.to(device, torch.bool).expand(whole)
    kept = codes[mask]
    if len(kept) and not 0 <= int(kept.min()) <= int(kept.max()) < grid.num_embeddings:
        wrong = kept[(kept < 0) | (kept >= grid.num_embeddings)][0]
        raise InputError(f"`known`: code {int(wrong)}, but the codes are 0 to {grid.num_embeddings - 1}")
    return codes, mask
