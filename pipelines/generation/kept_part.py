"""The part of a picture that a completion keeps: which sites of each grid it determines.

Shapes: *size the pixels of a picture, *shape the sites of each grid.
"""

from __future__ import annotations

from bisect import bisect_left

import torch

from codegrid.codes import Sides, describe_layout
from codegrid.errors import InputError
from codegrid.limits import check_whole
from codegrid.protocols import Prior, Tokenizer

Keep = int | torch.Tensor
Masks = tuple[torch.Tensor, ...]


def kept_masks(tokenizer: Tokenizer, keep: Keep, name: str = "keep") -> Masks:
    """Return masks (*shape) bool of the sites to keep, one for each grid, on the CPU.

    Args:
        tokenizer: the tokenizer whose codes are kept.
        keep: how many rows of the finest grid, from the top; or a mask over the sites, if all grids have one shape; or
            a mask (*size) over the known pixels. Of grids of several shapes, only codes that the known pixels determine
            are kept.
        name: the caller's parameter, for messages.

    Raises `InputError` if a mask fits neither the grids nor the pictures, if no rows or all rows would be kept, or if
    the kept part determines no code of some grid.
    """
    layout, shape = tokenizer.layout, tuple(keep.shape) if isinstance(keep, torch.Tensor) else None
    if not isinstance(keep, torch.Tensor):
        return _top_rows(tokenizer, keep, name)
    if all(shape == grid.shape for grid in layout):
        masks: Masks = (keep.bool().cpu(),) * len(layout)
    elif shape == tokenizer.signal.size:
        masks = _determined(tokenizer, keep.bool())
    else:
        raise InputError(
            f"`{name}`: the mask has the shape {shape}: give one of the grids ({describe_layout(layout)}) or of the "
            f"pictures ({'×'.join(map(str, tokenizer.signal.size))} pixels)"
        )
    for number, (grid, mask) in enumerate(zip(layout, masks, strict=True)):
        if not mask.any():
            of = f"grid {number} ({grid})" if len(layout) > 1 else f"the grid ({grid})"
            raise InputError(f"`{name}`: the part to keep determines no code of {of}: give a larger one")
    return masks


def keepable_rows(tokenizer: Tokenizer) -> range:
    """Return how many rows of the finest grid can be kept: at least one, or as many as determine a code of each grid.

    The range is empty if there is no such number that would leave anything to draw.
    """
    if _is_one_shape(tokenizer):
        return range(1, tokenizer.layout[-1].shape[0])
    height = tokenizer.signal.size[0]
    num_rows = int(_upper_part(tokenizer, height - 1)[-1].flatten(1).all(1).sum())

    def is_enough(lines: int) -> bool:
        return all(bool(mask.any()) for mask in _upper_part(tokenizer, lines))

    least = bisect_left(range(height), True, key=is_enough)
    numbers = range(1, num_rows + 1)
    return numbers[bisect_left(numbers, least, key=lambda rows: _lines_of(tokenizer, rows)) :]


def default_rows(tokenizer: Tokenizer) -> int:
    """Return how many rows of the finest grid are kept by default: half of them, or what is possible next to that."""
    half = max(1, tokenizer.layout[-1].shape[0] // 2)
    return min(keepable_rows(tokenizer), key=lambda rows: abs(rows - half), default=half)


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


def _top_rows(tokenizer: Tokenizer, rows: int, name: str) -> Masks:
    """Return masks (*shape) bool of the sites that the first rows of the finest grid determine."""
    grid = tokenizer.layout[-1]
    if grid.shape[0] == 1:
        raise InputError(f"`{name}`: the grids have a single row of codes: keeping it would leave nothing to draw")
    check_whole(name, rows, 1, grid.shape[0] - 1)
    possible = keepable_rows(tokenizer)
    if not possible:
        raise InputError(
            "these pictures cannot be completed: no part of one determines a code of each grid and leaves something to "
            "draw; that needs a tokenizer of larger pictures, or of fewer grids"
        )
    if rows > possible[-1]:
        raise InputError(f"`{name}` {rows}: nothing would be left to draw: keep at most {possible[-1]}")
    if rows < possible[0]:
        raise InputError(
            f"`{name}` {rows}: so few rows of the finest grid determine no code of the coarsest: keep at least "
            f"{possible[0]} of {grid.shape[0]}"
        )
    if _is_one_shape(tokenizer):
        return tuple(_leading(grid.shape, rows) for grid in tokenizer.layout)
    return _upper_part(tokenizer, _lines_of(tokenizer, rows))


def _lines_of(tokenizer: Tokenizer, rows: int) -> int:
    """Return the fewest lines of pixels that determine the first rows of the finest grid."""

    def is_enough(lines: int) -> bool:
        return bool(_upper_part(tokenizer, lines)[-1][:rows].all())

    return bisect_left(range(tokenizer.signal.size[0]), True, key=is_enough)


def _upper_part(tokenizer: Tokenizer, lines: int) -> Masks:
    """Return masks (*shape) bool of the sites that the first lines of pixels determine."""
    return _determined(tokenizer, _leading(tokenizer.signal.size, lines))


def _determined(tokenizer: Tokenizer, mask: torch.Tensor) -> Masks:
    return tuple(sites.cpu() for sites in tokenizer.kept_sites(mask.to(tokenizer.device)))


def _leading(shape: Sides, rows: int) -> torch.Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:rows] = True
    return mask


def _is_one_shape(tokenizer: Tokenizer) -> bool:
    return len({grid.shape for grid in tokenizer.layout}) == 1
