"""Figures for people: new ones, and rows of images with a name beside each row.

Shapes: n images of a row, c channels, H W image.
"""

from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from codegrid.data.images import to_float

WIDTH, MAX_HEIGHT = 12.0, 17.0  # inches
DPI = 110
PAPER = 1.0  # white, between the images
MAX_GRIDS = 12  # of a tokenizer: more would make a figure that nobody can look at


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, whose parts keep clear of each other and of its edges."""
    return Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


class Row(NamedTuple):
    """Images beside each other."""

    name: str
    images: torch.Tensor  # (n, c, H, W), 0 ... 1
    gap: float  # below the row, as a share of its height


def from_bytes(images: torch.Tensor) -> torch.Tensor:
    """Convert images (n, c, H, W) uint8 → (n, 3, H, W), 0 ... 1."""
    return to_unit(to_float(images))


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Convert images (n, c, H, W) in [-1, 1] → (n, 3, H, W), 0 ... 1."""
    return ((images.float().cpu().clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1)


def some_grids(count: int) -> list[int]:
    """Return the numbers of the grids to show, of so many: the first, the last, and others between them."""
    shown = min(count, MAX_GRIDS)
    return [place * (count - 1) // max(1, shown - 1) for place in range(shown)]


def name_grids(count: int) -> str:
    """Say in words which of so many grids are shown: `2 grids`, or `12 of 256 grids`."""
    shown = len(some_grids(count))
    return f"{shown} of {count} grids" if shown < count else f"{count} grids"


def columns_for(size: tuple[int, ...], square: int) -> int:
    """Return the number of columns for images of (H, W) in a figure that has room for `square` square ones."""
    height, width = size
    return max(1, min(2 * square, round(square * (height / width) ** 0.5)))


def plot_rows(rows: list[Row], title: str, extra: float = 0.0) -> tuple[Figure, Axes]:
    """Plot rows of images below each other, each with its name; `extra` inches stay free for anything else."""
    sheet, centres = _stack(rows)
    margin = 0.3 + 0.08 * max(len(line) for row in rows for line in row.name.split("\n"))  # inches, about
    height = (WIDTH - margin) * sheet.shape[0] / sheet.shape[1] + 0.6 + 0.25 * title.count("\n") + extra
    shrink = min(1.0, MAX_HEIGHT / height)
    figure = new_figure(max(9.5, WIDTH * shrink), height * shrink)
    axes = figure.add_subplot()
    axes.imshow(sheet.numpy())
    axes.set_anchor("NW")  # centred, the layout would leave too little room for the names
    axes.set_title(title, fontsize=13, pad=10)
    axes.set_xticks([])
    axes.set_yticks(centres, [row.name for row in rows], fontsize=11)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure, axes


def _stack(rows: list[Row]) -> tuple[torch.Tensor, list[float]]:
    """Return one image (H', W', 3) of all rows, and the height of each row's centre."""
    widest = max(_row_width(row.images) for row in rows)
    stripes, centres, top = [], [], 0
    for row in rows:
        height = row.images.shape[2]
        below = max(1, round(row.gap * height)) if row is not rows[-1] else 0
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
