"""Sheets: many images in one picture, row by row, for PNG files, trackers, model cards and the viewer.

Shapes: n images, c channels, H W image.
"""

import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.utils import make_grid

SHEET_WIDTH = 1000  # pixels, about: small images are enlarged by a whole factor, so that they stay sharp
GREY = 0.0  # between the images, and where there is none, in [-1, 1]


def make_sheet(images: torch.Tensor, columns: int | None = None) -> torch.Tensor:
    """Lay images (n, c, H, W) in [-1, 1] out row by row: a sheet (3, height, width) in [0, 1], enlarged if small.

    `columns` is by default about the root of n. A single image stands there without a margin.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    scale = max(1, SHEET_WIDTH // (columns * (images.shape[3] + 2)))
    sheet = make_grid(to_unit(images), nrow=columns, padding=2, pad_value=(GREY + 1) / 2)
    return sheet.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def as_sheet(images: torch.Tensor, columns: int | None = None) -> Image.Image:
    """Lay images (n, c, H, W) in [-1, 1] out row by row: one picture of PIL, enlarged if they are small.

    `columns` is by default about the root of n.

    >>> as_sheet(torch.zeros(6, 1, 28, 28), columns=3).size
    (1012, 682)
    """
    return Image.fromarray(to_pixels(make_sheet(images, columns)))


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
    """Turn a sheet (3, height, width) in [0, 1] into (height, width, 3) uint8."""
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
    """Bring images from [-1, 1] to [0, 1]."""
    return (images.float().cpu().clamp(-1, 1) + 1) / 2
