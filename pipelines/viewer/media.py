"""Kinds of signals on the page: how their items are read, shown and saved, and what they are called.

Shapes: n items, c channels, H W image.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codegrid.codes import Signal
from codegrid.data.folder import FolderImages
from codegrid.data.images import to_float
from codegrid.errors import InputError
from codegrid.pipelines.drawing.sheets import make_sheet, to_pixels
from codegrid.pipelines.evaluation.reconstruction import mean_psnr, squared_errors

from .pictures import figure_of, figures_of, png_of
from .sounds import Sounds
from .wording import CONTROLS

COLUMNS = 10  # of a sheet of samples that is downloaded


class Pictures:
    """How the page shows images."""

    heading, noun, items = "Image → codes → image", "image", "images"
    upload, file_types = "Upload a picture", ["image"]
    kept, rows = "The upper rows of the codes above", CONTROLS["keep_rows"]
    file, files = "image.png", ".png"  # names of downloads: of one, and the ending for several

    def __init__(self, signal: Signal) -> None:
        self.signal = signal

    def describe(self) -> str:
        """Return what one of the images is."""
        return f"images of {'×'.join(map(str, self.signal.size))} pixels"

    def read(self, path: Path) -> torch.Tensor:
        """Read a picture's file as (1, c, H, W) in [-1, 1], converted to the signal's size and channels.

        Raises `InputError`, with the file's name as the user knows it, if it cannot be read.
        """
        height, width = self.signal.size
        try:
            folder = FolderImages(path.parent, [path], None, [], (height, width), self.signal.channels)
            return to_float(folder.batch([0]).images)
        except InputError as error:
            raise InputError(str(error).replace(str(path), path.name)) from error

    def thumbnails(self, images: torch.Tensor) -> list[np.ndarray]:
        """Return pictures (H, W, 3) uint8 of images (n, c, H, W) to pick from."""
        return [to_pixels(make_sheet(image[None])) for image in images]

    def figure(self, image: torch.Tensor, name: str, strip: torch.Tensor) -> str:
        """Return the HTML of an image (1, c, H, W) in [-1, 1] below its name; its codes are not shown beneath."""
        return figure_of(image, name)

    def figures(self, images: torch.Tensor, names: Sequence[str], what: str) -> str:
        """Return the HTML of images (n, c, H, W), as many beside each other as fit; see `figures_of`."""
        return figures_of(images, names, what)

    def content(self, image: torch.Tensor) -> tuple[bytes, str]:
        """Return an image (1, c, H, W) as a PNG file, and its media type."""
        return png_of(image), "image/png"

    def contents(self, images: torch.Tensor) -> tuple[bytes, str]:
        """Return images (n, c, H, W) as a sheet, a PNG file, and its media type."""
        return png_of(images, min(len(images), COLUMNS)), "image/png"

    def compare(self, image: torch.Tensor, again: torch.Tensor, edited: torch.Tensor | None) -> str:
        """Return a sentence on how far a reconstruction (1, c, H, W) is off, and the image after edits, if any."""
        words = f"PSNR of the reconstruction: {_psnr(image, again):.1f} dB"
        return words + ("." if edited is None else f"; after your edits: {_psnr(image, edited):.1f} dB.")


def medium_of(signal: Signal) -> Any:
    """Return how the page shows a signal. Raises `InputError` if it cannot."""
    if signal.kind not in MEDIA:
        words = f"the viewer shows {' and '.join(MEDIA)} only: give one of those"
        raise InputError(f"`tokenizer` is one of {signal.kind}, but {words}")
    return MEDIA[signal.kind](signal)


def _psnr(image: torch.Tensor, other: torch.Tensor) -> float:
    """Return the PSNR between two images in [-1, 1], in dB."""
    return mean_psnr(squared_errors(image, other))


MEDIA: dict[str, Any] = {"image": Pictures, "sound": Sounds}
