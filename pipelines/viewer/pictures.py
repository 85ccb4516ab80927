"""Pictures as HTML of the page, so that they have names for screen readers and fit any window.

Shapes: n images, c channels, H W image.
"""

import base64
import html
import io
from collections.abc import Sequence

import torch
from PIL import Image

from codegrid.pipelines.drawing.sheets import make_sheet, to_pixels

SMALLEST, LARGEST = 84, 256  # pixels of a sample's side on the page


def figure_of(image: torch.Tensor, name: str) -> str:
    """Return the HTML of an image (1, c, H, W) in [-1, 1] below its name."""
    return f"<figure><figcaption>{html.escape(name)}</figcaption>{_img(image[0], name)}</figure>"


def figures_of(images: torch.Tensor, names: Sequence[str], what: str) -> str:
    """Return the HTML of images (n, c, H, W) in [-1, 1], as many beside each other as fit.

    Args:
        names: of the images' classes, shown below them; empty ones are left out.
        what: the kind of image, for screen readers.
    """
    figures = []
    for number, (image, name) in enumerate(zip(images, names, strict=True), 1):
        caption = f"<figcaption>{html.escape(name)}</figcaption>" if name else ""
        figures.append(f"<figure>{_img(image, f'{what} {number}' + f', {name}' * bool(name))}{caption}</figure>")
    side = max(SMALLEST, min(images.shape[3], LARGEST))
    return f'<div class="sheet" style="--side: {side}px; --count: {len(images)}">{"".join(figures)}</div>'


def png_of(images: torch.Tensor, columns: int | None = None) -> bytes:
    """Return images (n, c, H, W) in [-1, 1] as one PNG file: several as a sheet, a single one as it is."""
    sheet = make_sheet(images, columns) if len(images) > 1 else (images[0].expand(3, -1, -1).clamp(-1, 1) + 1) / 2
    content = io.BytesIO()
    Image.fromarray(to_pixels(sheet)).save(content, "PNG")
    return content.getvalue()


def as_link(content: bytes, kind: str = "image/png") -> str:
    """Return a file's content as a data URL that a browser can show or save."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _img(image: torch.Tensor, words: str) -> str:
    return f'<img src="{as_link(png_of(image[None]))}" alt="{html.escape(words)}">'
