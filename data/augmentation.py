"""Random changes to training images, for whole batches at once.

Shapes: b batch, c channels, H W image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from codegrid.errors import InputError
from codegrid.noise import Noise

from .images import to_float


def check_shift(shift: int, size: Sequence[int]) -> None:
    """Raise `InputError` if images of this size (H, W) cannot be moved by so many pixels."""
    if shift >= min(size):
        raise InputError(f"`shift` {shift}: the images are only {min(size)} wide: give less")


def move(images: torch.Tensor, moves: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """Move and mirror images by one gather over rows and columns, without changing pixel values.

    Args:
        images: (b, c, H, W).
        moves: (2, b) whole numbers, how many pixels up and to the left; the edges are repeated.
        mirrored: (b,) bool, whether the moved image is mirrored from left to right.
    """
    height, width = images.shape[2:]
    rows = (torch.arange(height, device=moves.device) + moves[0, :, None]).clamp(0, height - 1)  # (b, H)
    columns = (torch.arange(width, device=moves.device) + moves[1, :, None]).clamp(0, width - 1)  # (b, W)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    each = torch.arange(len(images), device=images.device)[:, None, None]
    return images[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Augmentation:
    """Turns batches of uint8 images into floats in [-1, 1], changing each image at random.

    Args:
        flip: mirror each image from left to right with probability 1/2.
        shift: move each image by up to this many pixels, vertically and horizontally; the edges are repeated.
        crop: cut out a random window of at least this share of each side, 0 ... 1, and enlarge it to the image's size.
    """

    flip: bool = False
    shift: int = 0
    crop: float = 1.0

    def __call__(self, images: torch.Tensor, noise: Noise) -> torch.Tensor:
        """Turn (b, c, H, W) uint8 into floats of that shape. Each image changes by the noise of its own sample."""
        if self.flip or self.shift:
            images = self._flip_and_shift(images, noise)
        floats = to_float(images)
        return self._crop(floats, noise) if self.crop < 1 else floats

    def _flip_and_shift(self, images: torch.Tensor, noise: Noise) -> torch.Tensor:
        moves = (noise.uniforms("moves", 2) * (2 * self.shift + 1)).long() - self.shift
        mirrored = noise.uniforms("mirrored") < (0.5 if self.flip else 0)
        return move(images, moves.T, mirrored)

    def _crop(self, images: torch.Tensor, noise: Noise) -> torch.Tensor:
        """Crop by bilinear interpolation at a grid of places in each image, which spans -1 ... 1 on both axes."""
        sides, *centres = noise.uniforms("crop", 3).to(images.dtype).T[..., None]  # (b, 1)
        share = 1 - (1 - self.crop) * sides
        places = []
        for length, uniform in zip(reversed(images.shape[2:]), centres, strict=True):  # x, then y
            centre = (2 * uniform - 1) * (1 - share)
            middles = (2 * torch.arange(length, device=share.device) + 1) / length - 1
            places.append(centre + share * middles)  # (b, length)
        x, y = places[0][:, None, :], places[1][:, :, None]
        grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1)  # (b, H, W, 2)
        return F.grid_sample(images, grid.to(images.device), padding_mode="border", align_corners=False)
