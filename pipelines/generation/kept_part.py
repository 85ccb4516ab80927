"""The part of a picture that a completion keeps: which sites of each grid belong to it, and which pixels are known.

No code that is kept knows what unknown pixels showed: before a picture is encoded, they become copies of known ones.

Shapes: p pictures, c channels, *size the pixels of a picture, *shape the sites of each grid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from codegrid.codes import Layout, Sides, describe_layout
from codegrid.errors import InputError
from codegrid.limits import check_whole
from codegrid.protocols import Prior, Tokenizer
from codegrid.registry import TABLES

Keep = int | torch.Tensor
Masks = tuple[torch.Tensor, ...]


class Part(NamedTuple):
    """A part of pictures: the same of all, or of each its own."""

    masks: Masks  # (*shape) or (p, *shape) bool, one for each grid: the sites whose codes are kept, on the CPU
    known: torch.Tensor | None = None  # (1, *size) or (p, *size) bool, on the CPU; None: nothing is hidden

    def rows(self, numbers: range) -> Part:
        """Return the part of some of the pictures."""
        if self.known is None or len(self.known) == 1:
            return self
        some = slice(numbers.start, numbers.stop)
        return Part(tuple(mask[some] for mask in self.masks), self.known[some])

    def of_known(self, images: torch.Tensor) -> torch.Tensor:
        """Return pictures (p, c, H, W) made of their known pixels: each unknown one is a copy of one that is near it.

        So the known part seems to go on. Beside grey pixels, codes would tell of an edge that is not there.
        """
        if self.known is None:
            return images
        near = _near_known(self.known).flatten(1)[:, None].expand(*images.shape[:2], -1)
        return images.flatten(2).gather(2, near.to(images.device)).view_as(images)

    def hide(self, images: torch.Tensor) -> torch.Tensor:
        """Return pictures (p, c, H, W) in [-1, 1] with all unknown pixels grey, to be shown."""
        return images if self.known is None else torch.where(self.known[:, None].to(images.device), images, 0)


def _near_known(known: torch.Tensor) -> torch.Tensor:
    """Return the number, in raster order, of a known pixel near each pixel: (p, H, W) int64 for (p, H, W) bool."""
    numbers = torch.arange(1.0, known[0].numel() + 1, dtype=torch.float64).view(known.shape[1:])
    near = torch.where(known, numbers, 0)
    while not near.all():  # known parts grow by a pixel upwards, downwards and sideways
        grown = torch.maximum(F.max_pool2d(near, (3, 1), 1, (1, 0)), F.max_pool2d(near, (1, 3), 1, (0, 1)))
        near = torch.where(near > 0, near, grown)
    return near.long() - 1


def choose_part(tokenizer: Tokenizer, keep: Keep, num_pictures: int) -> Part:
    """Return the part of pictures that is kept.

    Args:
        tokenizer: the tokenizer whose codes are kept.
        keep: how many rows of codes, as for `top_rows`; or a mask (*size) over the known pixels, as for `keep_pixels`;
            or a mask over the sites to keep, if all grids have one shape. Masks may be (p, *size) or (p, *shape), too:
            one for each picture.
        num_pictures: p.

    Raises `InputError` if a mask fits neither the grids nor the pictures, or keeps no code.
    """
    layout, size = tokenizer.layout, tokenizer.signal.size
    if not isinstance(keep, torch.Tensor):
        return Part(top_rows(layout, keep))
    of_sites = all(_fits(keep, grid.shape) for grid in layout)
    if not of_sites and not _fits(keep, size):
        raise InputError(
            f"`keep`: the mask has the shape {tuple(keep.shape)}: give one of the grids ({describe_layout(layout)}) or "
            f"of the pictures ({'×'.join(map(str, size))} pixels)"
        )
    masks = keep.bool().cpu().reshape(-1, *(layout[0].shape if of_sites else size))
    if len(masks) not in (1, num_pictures):
        raise InputError(f"`keep`: {len(masks)} masks for {num_pictures} pictures: give one for each, or one for all")
    if not of_sites:
        return keep_pixels(tokenizer, masks)
    _refuse_empty(masks.flatten(1).any(1), "keep", "the mask marks none")
    return Part((masks,) * len(layout))


def _fits(mask: torch.Tensor, shape: Sides) -> bool:
    """Return whether a mask is of this shape, or has several of it."""
    return tuple(mask.shape[-len(shape) :]) == shape and mask.ndim - len(shape) in (0, 1)


def keep_pixels(tokenizer: Tokenizer, known: torch.Tensor, name: str = "keep") -> Part:
    """Return the part of pictures whose pixels are known, (1, *size) for all or (p, *size) bool.

    Kept are the codes whose own pixels are all known. A coarse grid may keep none: it is drawn anew.

    `name` is the caller's parameter, for messages. Raises `InputError` if no code of a picture is kept.
    """
    of_each = [tokenizer.kept_sites(pixels) for pixels in known.to(tokenizer.device)]
    masks = tuple(torch.stack(sites).cpu() for sites in zip(*of_each, strict=True))
    kept = torch.stack([mask.flatten(1).any(1) for mask in masks]).any(0)
    _refuse_empty(kept, name, "each has unknown pixels of its own")
    return Part(masks, known.cpu())


def _refuse_empty(kept: torch.Tensor, name: str, reason: str) -> None:
    """Raise `InputError` unless every picture keeps a code: `kept` (p,) bool says which do."""
    if not kept.all():
        of = f" of picture {int((~kept).nonzero()[0])}" if len(kept) > 1 else ""
        raise InputError(f"`{name}`: no code{of} is kept, as {reason}: hide less")


def describe_kept(layout: Layout, masks: Masks) -> str:
    """Describe in words how many codes of each grid are kept: `12 of 16 and 48 of 64 codes`."""
    counts = [mask.reshape(-1, grid.num_sites).sum(1) for grid, mask in zip(layout, masks, strict=True)]
    ends = [dict.fromkeys((int(count.min()), int(count.max()))) for count in counts]
    words = [f"{' to '.join(map(str, each))} of {grid.num_sites}" for each, grid in zip(ends, layout, strict=True)]
    return " and ".join(dict.fromkeys(words)) + " codes" + " of each grid" * (len(words) > len(set(words)))


def top_rows(layout: Layout, rows: int, name: str = "keep") -> Masks:
    """Return masks (*shape) bool that keep the first rows of the finest grid, and rows of coarser grids above its last.

    A coarser grid of a single row keeps none: it is drawn anew.

    `name` is the caller's parameter, for messages. Raises `InputError` if no row of some grid, or all, would be kept.
    """
    height, possible = layout[-1].shape[0], keepable_rows(layout)
    if not possible:
        raise InputError(
            f"`{name}`: a row of the {layout[-1]} is as high as the picture: keeping it would leave nothing to draw"
            "; give a mask of pixels"
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

    Coarser grids of a single row do not count. The range is empty if that leaves nothing to draw.
    """
    height = layout[-1].shape[0]
    return range(max([-(-height // grid.shape[0]) for grid in layout if grid.shape[0] > 1], default=1), height)


def default_rows(layout: Layout) -> int:
    """Return how many rows of the finest grid are kept by default: half of them, or as many as must be."""
    return max(keepable_rows(layout).start, layout[-1].shape[0] // 2)


def check_keeps(prior: Prior, masks: Masks) -> None:
    """Raise `InputError` if a prior's sampler cannot keep the sites, (*shape) or (p, *shape) bool, of its grids.

    The message names the priors that can.
    """
    pairs = [(masks[number], grid) for number, grid in zip(prior.grids, prior.layout, strict=True)]
    own = [mask.reshape(-1, grid.num_sites) for mask, grid in pairs]
    if prior.keeps == "none" and any(bool(mask.any()) for mask in own):
        raise InputError(f"this prior cannot keep any codes: it only draws whole samples{_others()}")
    if prior.keeps != "first":
        return
    for number, mask in zip(prior.grids, own, strict=True):
        gaps = mask & ((~mask).cumsum(1) > 0)
        if gaps.any():
            site = int(gaps.any(0).nonzero().max())
            of = f" of grid {number}" if len(masks) > 1 else ""
            raise InputError(
                f"the mask keeps site {site}{of} in raster order, but not all before it: this prior draws codes in "
                f"that order, so that only the first ones can be kept{_others()}"
            )


def _others() -> str:
    """Return words that name the priors of the table that can keep any codes, or any roughly; empty without any."""
    table, words = TABLES["prior"], ""
    for keeps, what in (("any", "keep any codes"), ("roughly", "keep any roughly")):
        names = [name for name in table if getattr(table[name], "keeps", None) == keeps]
        words += f"; priors that {what}: {', '.join(names)}" if names else ""
    return words
