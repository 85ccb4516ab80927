"""A grid of codes as a picture: a colour for each code, near ones alike, and its number where there is room.

Shapes: h w code grid, K num_embeddings, D embedding_dim.
"""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from codegrid.stage1_vqvae import VQVAE

from .colours import colours_by_nearness

SIDE = 560  # pixels of the longer side, about
READABLE = 28  # pixels of a site that has room for its number


@torch.no_grad()
def colours_of(tokenizer: VQVAE) -> np.ndarray:
    """A colour (K, 3) uint8 for each code, that of its vector."""
    codes = torch.arange(tokenizer.num_embeddings, device=next(tokenizer.parameters()).device)
    vectors = tokenizer.quantizer.look_up(codes[:, None, None]).flatten(1)  # (K, D)
    return (255 * colours_by_nearness(vectors)).round().to(torch.uint8).numpy()


def draw_codes(codes: np.ndarray, colours: np.ndarray, selected: tuple[int, int] | None = None) -> np.ndarray:
    """Codes (h, w) → a picture (h·s, w·s, 3) uint8 of sites of s pixels, the selected (row, column) framed."""
    height, width = codes.shape
    site = max(1, SIDE // max(height, width))
    picture = Image.fromarray(colours[codes]).resize((width * site, height * site), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    if site >= READABLE:
        digits = len(str(len(colours) - 1))
        font = ImageFont.load_default(min(site / 2.2, 1.5 * site / digits))
        for row, column in np.ndindex(height, width):
            colour = colours[codes[row, column]]
            ink = "black" if colour @ (0.299, 0.587, 0.114) > 125 else "white"
            middle = ((column + 0.5) * site, (row + 0.5) * site)
            draw.text(middle, str(codes[row, column]), ink, font, anchor="mm")
    if selected:
        row, column = selected
        box = (column * site, row * site, (column + 1) * site - 1, (row + 1) * site - 1)
        line = max(2, min(site // 12, 5))
        draw.rectangle(box, outline="black", width=line)  # two frames: one of them shows on any colour
        if site > 4 * line:
            inner = (box[0] + line, box[1] + line, box[2] - line, box[3] - line)
            draw.rectangle(inner, outline="white", width=line)
    return np.asarray(picture)


def site_at(x: int, y: int, shape: tuple[int, int]) -> tuple[int, int]:
    """The (row, column) of a pixel of `draw_codes`' picture of a grid of this shape (h, w)."""
    site = max(1, SIDE // max(shape))
    return min(y // site, shape[0] - 1), min(x // site, shape[1] - 1)
