"""Random changes to training images, for whole batches at once.

Shapes: b batch, c channels, H W image.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .images import to_float


@dataclass(frozen=True)
class Augmentation:
    """Batches of uint8 images → float images in [-1, 1], each changed at random in its own way.

    Args:
        flip: mirror every second image, on average, from left to right.
        shift: move each image by up to this many pixels, up or down and to a side; the edges are repeated.
        crop: cut out a random window of at least this share of each side, 0 ... 1, and enlarge it to the image's size.
    """

    flip: bool = False
    shift: int = 0
    crop: float = 1.0

    def __call__(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """(b, c, H, W) uint8 → the same shape, float32."""
        if self.flip or self.shift:
            images = self._flip_and_shift(images, generator)
        floats = to_float(images)
        return self._crop(floats, generator) if self.crop < 1 else floats

    def _flip_and_shift(self, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """One gather by rows and columns: no pixel is changed."""
        batch, _, height, width = images.shape
        moves = torch.randint(-self.shift, self.shift + 1, (2, batch, 1), generator=generator)
        rows = (torch.arange(height) + moves[0]).clamp(0, height - 1)  # (b, H)
        columns = (torch.arange(width) + moves[1]).clamp(0, width - 1)  # (b, W)
        if self.flip:
            mirrored = torch.rand(batch, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, width - 1 - columns, columns)
        rows, columns = rows.to(images.device), columns.to(images.device)
        each = torch.arange(batch, device=images.device)[:, None, None]
        return images[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def _crop(self, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Bilinear, by one sampling grid for each image."""
        batch = len(images)
        share = 1 - (1 - self.crop) * torch.rand(batch, generator=generator)
        centres = (2 * torch.rand(batch, 2, generator=generator) - 1) * (1 - share)[:, None]  # in -1 ... 1 of the image
        windows = torch.cat([torch.eye(2) * share[:, None, None], centres[:, :, None]], dim=2)  # (b, 2, 3)
        grid = F.affine_grid(windows, list(images.shape), align_corners=False).to(images.device)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
