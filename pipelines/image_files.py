"""Images as an array file that others' tools read, and as a page to look at.

Shapes: n images, c channels, H W image.
"""

from pathlib import Path

import numpy as np
import torch

from data.images import to_float

from .pictures import save_grid

ON_A_PAGE = 100


def write_images(folder: Path, name: str, images: torch.Tensor, labels: np.ndarray | None) -> None:
    """Write NAME.npz, with `arr_0` uint8 NHWC and `arr_1` the labels if there are any, and NAME.png, a page of them.

    Args:
        images: (n, c, H, W) uint8.
        labels: (n,) int64 or None.
    """
    arrays = [images.permute(0, 2, 3, 1).contiguous().numpy()] + ([] if labels is None else [labels])
    np.savez(folder / f"{name}.npz", *arrays)
    save_grid(folder / f"{name}.png", to_float(images[:ON_A_PAGE]))
