"""Sheets: many images in one picture, row by row, for PNG files, trackers, model cards and the viewer.

Shapes: n images, c channels, H W image.
"""

import io
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image

from codegrid.data.conversion import as_images
from codegrid.limits import Range, check_value

SHEET_WIDTH = 1000  # pixels, about: small images are enlarged by a whole factor, so that they stay sharp
GREY = 0.0  # between the images, and in place of missing ones, in [-1, 1]


def make_sheet(images: torch.Tensor, columns: int | None = None) -> torch.Tensor:
    """Lay images (n, c, H, W) in [-1, 1] out row by row: a sheet (3, height, width) in [0, 1], enlarged if small.

    `columns` is by default about the square root of n. A single image has no margin.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    scale = max(1, SHEET_WIDTH // (columns * (images.shape[3] + 2)))
    sheet = lay_out(to_unit(images), columns, margin=2, fill=(GREY + 1) / 2)
    return sheet.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def lay_out(images: torch.Tensor, columns: int, margin: int, fill: float) -> torch.Tensor:
    """Lay images (n, c, H, W) in [0, 1], c 1 or 3, out row by row: (3, height, width). A single one has no margin.

    torchvision's `make_grid` is not used: importing it would take seconds at the start of every training.
    """
    images = images.expand(-1, 3, -1, -1)
    if len(images) == 1:
        return images[0]
    columns = min(columns, len(images))
    height, width = images.shape[2] + margin, images.shape[3] + margin
    rows = math.ceil(len(images) / columns)
    sheet = torch.full((3, rows * height + margin, columns * width + margin), fill)
    for number, image in enumerate(images):
        top, left = number // columns * height + margin, number % columns * width + margin
        sheet[:, top : top + images.shape[2], left : left + images.shape[3]] = image
    return sheet


def as_sheet(images: Any, columns: int | None = None) -> Image.Image:
    """Lay images (n, c, H, W) in [-1, 1] out row by row in one PIL picture, enlarged if they are small.

    `columns` is by default about the square root of n. Other pictures and arrays are converted as by `as_images`.

    Raises `InputError` if they are no images.

    >>> as_sheet(torch.zeros(6, 1, 28, 28), columns=3).size
    (1012, 682)
    """
    check_value("columns", columns, Annotated[int, Range(1)] | None)
    is_batch = isinstance(images, torch.Tensor) and images.ndim == 4 and images.is_floating_point() and len(images)
    return Image.fromarray(to_pixels(make_sheet(images if is_batch else as_images(images), columns)))


def make_pairs(originals: torch.Tensor, reconstructions: torch.Tensor, columns: int = 12) -> torch.Tensor:
    """Make a sheet (3, height, width) in [0, 1] whose odd rows are originals, with their reconstructions below them.

    Both are (n, c, H, W) in [-1, 1].
    """
    columns = min(columns, len(originals))
    rows = []
    for first in range(0, len(originals), columns):
        for images in (originals[first : first + columns], reconstructions[first : first + columns]):
            missing = torch.full((columns - len(images), *images.shape[1:]), GREY)
            rows += [images.float().cpu(), missing]
    return make_sheet(torch.cat(rows), columns)


def to_pixels(sheet: torch.Tensor) -> np.ndarray:
    """Convert a sheet (3, height, width) in [0, 1] to (height, width, 3) uint8."""
    return (sheet * 255).round().byte().permute(1, 2, 0).numpy()


def to_png(sheet: torch.Tensor) -> bytes:
    """Return a sheet (3, height, width) in [0, 1] as the bytes of a PNG file."""
    content = io.BytesIO()
    Image.fromarray(to_pixels(sheet)).save(content, "PNG")
    return content.getvalue()


def save_pairs(path: Path, originals: torch.Tensor, reconstructions: torch.Tensor, columns: int = 12) -> None:
    """Save a sheet of originals with their reconstructions below them, (n, c, H, W) in [-1, 1] each."""
    path.write_bytes(pairs_png(originals, reconstructions, columns))


def pairs_png(originals: torch.Tensor, reconstructions: torch.Tensor, columns: int = 12) -> bytes:
    """Return the sheet that `save_pairs` writes as bytes, for a model's card."""
    return to_png(make_pairs(originals, reconstructions, columns))


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Convert images from [-1, 1] to [0, 1]."""
    return (images.float().cpu().clamp(-1, 1) + 1) / 2
