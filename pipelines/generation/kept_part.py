"""The part of a picture that a completion keeps: which sites of each grid belong to it.

Shapes: *size the pixels of a picture, *shape the sites of each grid.
"""

from __future__ import annotations

import torch

from codegrid.codes import Layout, describe_layout
from codegrid.errors import InputError
from codegrid.limits import check_whole
from codegrid.protocols import Prior, Tokenizer

Keep = int | torch.Tensor
Masks = tuple[torch.Tensor, ...]


def kept_masks(tokenizer: Tokenizer, keep: Keep) -> Masks:
    """Return masks (*shape) bool of the sites to keep, one for each grid, on the CPU.

    Args:
        tokenizer: the tokenizer whose codes are kept.
        keep: how many rows of codes, as for `top_rows`; or a mask over the sites, if all grids have one shape; or a
            mask (*size) over the known pixels, which keeps the codes that the tokenizer says they determine.

    Raises `InputError` if a mask fits neither the grids nor the pictures, or keeps no code of some grid.
    """
    layout, shape = tokenizer.layout, tuple(keep.shape) if isinstance(keep, torch.Tensor) else None
    if not isinstance(keep, torch.Tensor):
        return top_rows(layout, keep)
    if all(shape == grid.shape for grid in layout):
        masks: Masks = (keep.bool().cpu(),) * len(layout)
    elif shape == tokenizer.signal.size:
        masks = tuple(sites.cpu() for sites in tokenizer.kept_sites(keep.bool().to(tokenizer.device)))
    else:
        raise InputError(
            f"`keep`: the mask has the shape {shape}: give one of the grids ({describe_layout(layout)}) or of the "
            f"pictures ({'×'.join(map(str, tokenizer.signal.size))} pixels)"
        )
    for number, (grid, mask) in enumerate(zip(layout, masks, strict=True)):
        if not mask.any():
            of = f"grid {number} ({grid})" if len(layout) > 1 else f"the grid ({grid})"
            raise InputError(f"`keep`: this part determines no code of {of}: give a larger one, or a number of rows")
    return masks


def top_rows(layout: Layout, rows: int, name: str = "keep") -> Masks:
    """Return masks (*shape) bool that keep the first rows of the finest grid, and rows of coarser grids above its last.

    `name` is the caller's parameter, for messages. Raises `InputError` if no row of some grid, or all, would be kept.
    """
    height, possible = layout[-1].shape[0], keepable_rows(layout)
    if not possible:
        coarse = min(layout, key=lambda grid: grid.shape[0])
        raise InputError(
            f"`{name}`: a row of the {coarse} is as high as the picture: keeping it would leave nothing to draw"
        )
    if rows in range(1, possible.start):
        raise InputError(
            f"`{name}` {rows}: no code of the coarsest grid covers so few of the finest one's {height} rows: keep at "
            f"least {possible.start}"
        )
    check_whole(name, rows, possible.start, height - 1)
    masks = [torch.zeros(grid.shape, dtype=torch.bool) for grid in layout]
    for mask in masks:
        mask[: rows // -(-height // len(mask))] = True
    return tuple(masks)


def keepable_rows(layout: Layout) -> range:
    """Return how many rows of the finest grid can be kept: from those that a row of the coarsest covers to all but one.

    The range is empty if that leaves nothing to draw.
    """
    height = layout[-1].shape[0]
    return range(max(-(-height // grid.shape[0]) for grid in layout), height)


def default_rows(layout: Layout) -> int:
    """Return how many rows of the finest grid are kept by default: half of them, or as many as must be."""
    return max(keepable_rows(layout).start, layout[-1].shape[0] // 2)


def check_keeps(prior: Prior, masks: Masks) -> None:
    """Raise `InputError` if a prior's sampler cannot keep the sites that masks (*shape) of its grids select."""
    for mask in [masks[grid] for grid in prior.grids]:
        in_order, count = mask.flatten(), int(mask.sum())
        if count and prior.keeps == "none":
            raise InputError("this prior cannot keep any codes: it only draws whole samples")
        if prior.keeps == "first" and not in_order[:count].all():
            raise InputError(
                f"the mask keeps site {int(in_order.nonzero().max())} in raster order, but not all before it: this "
                "prior draws codes in that order, so that only the first ones can be kept"
            )
