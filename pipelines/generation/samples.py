"""Samples of a pipeline: images as tensors, arrays or pictures, with their codes, labels and seed.

Shapes: n samples, c channels, H W image, *shape the sites of each grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from codegrid.codes import Codes
from codegrid.data.image_files import names_of_labels, to_pictures, write_pictures
from codegrid.data.images import to_uint8
from codegrid.errors import InputError
from codegrid.limits import check_value

OutputType = Literal["pt", "np", "pil"]
Images = torch.Tensor | np.ndarray | Image.Image | Sequence[Any]  # what `codegrid.as_images` accepts


class Samples(NamedTuple):
    """Samples of a pipeline."""

    images: Any  # (n, c, H, W) float in [-1, 1]; or arrays or pictures, as in `as_output`
    codes: Codes  # (n, *shape) int64, one for each grid
    labels: torch.Tensor | None  # (n,) int64, -1 for no particular class
    seed: int  # draws the same samples again
    classes: tuple[str, ...] = ()  # the names of the labels; empty if they have none
    prompts: tuple[str, ...] = ()  # of each sample; empty without texts

    def save(self, folder: str | Path) -> list[Path]:
        """Save each image as a PNG file named by its number and class, `00012-cat.png`, and return the paths.

        Raises `InputError` if they are sound.
        """
        pictures, labels = self.images, self.labels
        if isinstance(pictures, np.ndarray):
            pictures = torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1
        if isinstance(pictures, torch.Tensor):
            pictures = as_output(pictures, "pil")
        names = names_of_labels(labels, self.classes, len(pictures))
        return write_pictures(folder, pictures, len(pictures), lambda rows: names[rows.start : rows.stop])


def as_output(images: torch.Tensor, output_type: OutputType) -> Any:
    """Convert images (n, c, H, W) in [-1, 1] to an output type.

    Args:
        output_type: pt: the tensors unchanged; np: arrays (n, H, W, c) float32 in [0, 1], as in matplotlib and
            diffusers; pil: a list of PIL pictures, grey or RGB.

    Raises `InputError` if PIL pictures cannot show their channels, or they are sound and not to be tensors.
    """
    check_value("output_type", output_type, OutputType)
    if output_type == "pt":
        return images
    if images.ndim != 4:
        raise InputError(f"samples of shape {tuple(images.shape)} are sound, not pictures: use `output_type` pt")
    if output_type == "np":
        return ((images.float() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    if images.shape[1] not in (1, 3):
        raise InputError(f"`output_type` pil: images have {images.shape[1]} channels, not 1 or 3: use np")
    return to_pictures(to_uint8(images))
