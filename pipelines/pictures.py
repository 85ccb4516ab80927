"""Pages of images as PNG.

Shapes: n images, c channels, H W image.
"""

import math
from pathlib import Path

import torch
from torchvision.utils import make_grid, save_image

PAGE_WIDTH = 1000  # pixels, about: small images are enlarged by a whole factor, so that they stay sharp


def save_grid(path: Path, images: torch.Tensor, columns: int | None = None) -> None:
    """Save images (n, c, H, W) in [-1, 1], row by row, as one page; as square as it can be by default."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    scale = max(1, PAGE_WIDTH // (columns * (images.shape[3] + 2)))
    page = make_grid((images.float().clamp(-1, 1) + 1) / 2, nrow=columns, padding=2, pad_value=0.5)
    save_image(page.repeat_interleave(scale, 1).repeat_interleave(scale, 2), path)


def save_pairs(path: Path, originals: torch.Tensor, reconstructions: torch.Tensor, columns: int = 12) -> None:
    """Save a page whose odd rows are originals, with their reconstructions below them."""
    columns = min(columns, len(originals))
    rows = []
    for first in range(0, len(originals), columns):
        for images in (originals[first : first + columns], reconstructions[first : first + columns]):
            missing = images.new_ones(columns - len(images), *images.shape[1:])
            rows += [images, missing]
    save_grid(path, torch.cat(rows), columns)
