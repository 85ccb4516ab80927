"""Rows of images as one figure, with a name beside each row.

Shapes: n images of a row, c channels, H W image.
"""

from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from codegrid.data.images import to_float

WIDTH, HIGHEST = 12.0, 17.0  # inches
DPI = 110
PAPER = 1.0  # white, between the images


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, whose parts keep clear of each other and of its edges."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    return figure


class Row(NamedTuple):
    """Some images that stand beside each other."""

    name: str
    images: torch.Tensor  # (n, c, H, W), 0 ... 1


def from_bytes(images: torch.Tensor) -> torch.Tensor:
    """(n, c, H, W) uint8 → (n, 3, H, W), 0 ... 1."""
    return to_unit(to_float(images))


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """(n, c, H, W) in [-1, 1] → (n, 3, H, W), 0 ... 1."""
    return ((images.float().cpu().clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1)


def columns_for(size: tuple[int, int], square: int) -> int:
    """How many images of (H, W) stand beside each other where `square` of them do that are square."""
    height, width = size
    return max(1, min(2 * square, round(square * (height / width) ** 0.5)))


def page_figure(rows: list[Row], title: str, gaps: list[float], extra: float = 0.0) -> tuple[Figure, Axes]:
    """A figure of rows.

    Args:
        gaps: below each row, as a share of its height.
        extra: height for what else the figure shows, in inches.
    """
    page, centres = _stack(rows, gaps)
    margin = 0.3 + 0.08 * max(len(row.name) for row in rows)  # inches, about, for the names
    height = (WIDTH - margin) * page.shape[0] / page.shape[1] + 0.6 + extra
    shrink = min(1.0, HIGHEST / height)
    figure = new_figure(max(9.5, WIDTH * shrink), height * shrink)
    axes = figure.add_subplot()
    axes.imshow(page.numpy())
    axes.set_anchor("NW")  # in the middle the layout would take too little room for the names
    axes.set_title(title, fontsize=13, pad=10)
    axes.set_xticks([])
    axes.set_yticks(centres, [row.name for row in rows], fontsize=11)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure, axes


def _stack(rows: list[Row], gaps: list[float]) -> tuple[torch.Tensor, list[float]]:
    """One image (H', W', 3) of all rows, and the height at which each row has its centre."""
    widest = max(_row_width(row.images) for row in rows)
    stripes, centres, top = [], [], 0
    for row, gap in zip(rows, gaps, strict=True):
        height = row.images.shape[2]
        below = max(1, round(gap * height)) if row is not rows[-1] else 0
        stripe = torch.full((height + below, widest, 3), PAPER)
        for number, image in enumerate(row.images):
            left = number * (image.shape[2] + _gap(image.shape[2]))
            stripe[:height, left : left + image.shape[2]] = image.permute(1, 2, 0)
        stripes.append(stripe)
        centres.append(top + (height - 1) / 2)
        top += height + below
    return torch.cat(stripes), centres


def _row_width(images: torch.Tensor) -> int:
    count, width = images.shape[0], images.shape[3]
    return count * width + (count - 1) * _gap(width)


def _gap(width: int) -> int:
    return max(1, width // 14)
