"""Known pixels of pictures, pasted into their completions with a soft seam.

Shapes: p pictures, b completions, c channels, H W image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from codegrid.codes import Layout


class Paste(NamedTuple):
    """Pictures, and how much of their pixels to take."""

    read: Callable[[torch.Tensor], torch.Tensor]  # numbers of pictures (b,) → their images (b, c, H, W) in [-1, 1]
    weights: torch.Tensor  # (1, H, W) or (p, H, W) from 0, the completion's pixel, to 1, the picture's

    def onto(self, images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Return completions (b, c, H, W) of the pictures with these numbers (b,), with the known pixels in them."""
        weights = self.weights if len(self.weights) == 1 else self.weights[numbers]
        each, places = numbers.unique(return_inverse=True)  # several completions of each
        return torch.lerp(images, self.read(each)[places].to(images), weights[:, None].to(images))


def make_paste(read: Callable[[torch.Tensor], torch.Tensor], known: torch.Tensor, layout: Layout) -> Paste:
    """Return a `Paste` of known pixels (1 or p, H, W) bool, with a seam half as wide as a site of the finest grid.

    A wider one would mix what is given with what is drawn where a code is only partly known.
    """
    return Paste(read, weigh(known, -(-known.shape[1] // (2 * layout[-1].shape[0]))))


def weigh(known: torch.Tensor, width: int) -> torch.Tensor:
    """Return how much of each known pixel to take, 0 ... 1, for masks (p, H, W) bool.

    It is 0 at unknown pixels, and rises to 1 over the `width` pixels beside them, so that no seam is seen.
    """
    unknown = (~known).float()[:, None]
    steps = [1 - F.max_pool2d(unknown, 2 * far + 1, 1, far) for far in range(width + 1)]
    return torch.stack(steps).mean(0)[:, 0]
