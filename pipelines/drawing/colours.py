"""A colour for each code, and pictures of code grids.

Shapes: K num_embeddings, D embedding_dim, b items, *shape the sites of a grid, H W picture.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from codegrid.codes import Codes
from codegrid.protocols import Tokenizer

COLOURS = "viridis"  # even steps look even, also in grey and to the colour-blind
SIDE = 560  # pixels of the longer side of a grid's picture, about
STRIP = 24  # pixels of the height of a single row of sites, at least
READABLE = 28  # pixels of a site that has room for its number
LETTERS = 48  # pixels of a number's font, at most


class Principal(NamedTuple):
    """A codebook along the directions in which it varies most."""

    coordinates: torch.Tensor  # (K, 2) float64
    shares: torch.Tensor  # (2,) of the variance, 0 ... 1


def principal_components(entries: torch.Tensor) -> Principal:
    """Return the first two principal components of a codebook (K, D); the second is 0 if D is 1."""
    centred = entries.detach().double().cpu()
    centred = centred - centred.mean(0)
    # from the (D, D) covariance, since there may be many entries
    variances, directions = torch.linalg.eigh(centred.T @ centred)
    variances, directions = variances.flip(0)[:2].clamp_min(0), directions.flip(1)[:, :2]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    coordinates = centred @ (directions * largest.sign())  # a direction has no sign: without one, colours could flip
    shares = variances / centred.square().sum().clamp_min(1e-300)
    missing = 2 - coordinates.shape[1]
    return Principal(F.pad(coordinates, (0, missing)), F.pad(shares, (0, missing)))


def colours_by_nearness(entries: torch.Tensor) -> torch.Tensor:
    """Return a colour (K, 3), 0 ... 1, for each of a codebook's entries (K, D): near ones look alike.

    Nearness is measured along the first principal component.
    """
    import matplotlib  # imported here: training a prior does not need it

    # by rank, so that a single far entry does not take up the range of colours
    ranks = principal_components(entries).coordinates[:, 0].argsort().argsort()
    places = ranks.numpy() / max(1, len(ranks) - 1)
    return torch.from_numpy(matplotlib.colormaps[COLOURS](places)[:, :3])


def colours_by_number(num_embeddings: int) -> torch.Tensor:
    """Return a colour (K, 3), 0 ... 1, for each code, unlike those of nearby numbers: for codes without vectors."""
    from matplotlib.colors import hsv_to_rgb

    numbers = np.arange(num_embeddings)
    hues = numbers * 0.618034 % 1  # the golden ratio: the next hue falls into the widest gap
    strengths = np.stack([hues, 0.45 + 0.45 * (numbers % 3) / 2, 0.95 - 0.4 * (numbers % 5) / 4], axis=1)
    return torch.from_numpy(hsv_to_rgb(strengths))


def colours_of(tokenizer: Tokenizer) -> list[torch.Tensor]:
    """Return the colours (K, 3), 0 ... 1, of each grid: by nearness if its entries can be listed, else by number."""
    colours = []
    for number, grid in enumerate(tokenizer.layout):
        entries = tokenizer.quantizer.entries(number)
        colours.append(colours_by_number(grid.num_embeddings) if entries is None else colours_by_nearness(entries))
    return colours


def as_plane(codes: torch.Tensor) -> torch.Tensor:
    """Lay a grid's codes (b, *shape) out in the plane (b, h, w): one axis as a strip, frames beside each other."""
    if codes.ndim == 2:
        return codes[:, None]
    return codes if codes.ndim == 3 else codes.permute(0, 2, 1, 3).flatten(2)


def paint(codes: torch.Tensor, colours: torch.Tensor, scale: int = 1) -> torch.Tensor:
    """Paint a grid's codes (b, *shape) in colours (K, 3): pictures (b, 3, h·scale, w·scale), 0 ... 1."""
    painted = colours[as_plane(codes.cpu())].permute(0, 3, 1, 2).float()
    return painted.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def paint_all(codes: Codes, colours: Sequence[torch.Tensor], size: tuple[int, int]) -> list[torch.Tensor]:
    """Paint the codes of every grid of a layout in a picture (b, 3, H, W), 0 ... 1, of one `size` for all."""
    return [F.interpolate(paint(each, its), size) for each, its in zip(codes, colours, strict=True)]


def beside(pictures: Sequence[torch.Tensor], gap: int) -> torch.Tensor:
    """Put pictures (b, 3, H, W), 0 ... 1, beside each other, `gap` white pixels between them: (b, 3, H, W')."""
    seam = torch.ones(*pictures[0].shape[:3], gap)
    parts = [part for picture in pictures for part in (seam, picture)]
    return torch.cat(parts[1:], dim=3)


def plane_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the (h, w) of the plane in which `as_plane` lays out a grid of this shape."""
    if len(shape) == 1:
        return 1, shape[0]
    return (shape[0], shape[1]) if len(shape) == 2 else (shape[1], shape[0] * shape[2])


def index_of(shape: tuple[int, ...], row: int, column: int) -> tuple[int, ...]:
    """Return the site of a grid of this shape that `as_plane` puts at (row, column)."""
    if len(shape) == 1:
        return (column,)
    return (row, column) if len(shape) == 2 else (column // shape[2], row, column % shape[2])


def picture_of(
    codes: torch.Tensor,
    colours: torch.Tensor,
    selected: tuple[int, int] | None = None,
    marked: torch.Tensor | None = None,
) -> np.ndarray:
    """Draw one item's grid of codes (*shape) as (h·s, w·s, 3) uint8, with their numbers if there is room.

    Args:
        codes: of one grid; see `as_plane`.
        colours: (K, 3), 0 ... 1.
        selected: (row, column) of a site to frame.
        marked: sites (*shape) bool to mark in their upper right corner.
    """
    plane = as_plane(codes[None])[0].cpu().numpy()
    palette = (255 * colours).round().to(torch.uint8).numpy()
    height, width = plane.shape
    site, tall = _site_side((height, width)), _site_height((height, width))
    picture = Image.fromarray(palette[plane]).resize((width * site, height * tall), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    if site >= READABLE:
        digits = len(str(len(palette) - 1))
        font = ImageFont.load_default(min(site / 2.2, 1.5 * site / digits, LETTERS))
        for row, column in np.ndindex(height, width):
            ink = "black" if palette[plane[row, column]] @ (0.299, 0.587, 0.114) > 125 else "white"
            middle = ((column + 0.5) * site, (row + 0.5) * tall)
            draw.text(middle, str(plane[row, column]), ink, font, anchor="mm")
    if marked is not None:
        for row, column in as_plane(marked[None])[0].nonzero().tolist():
            _mark(draw, row, column, (site, tall))
    if selected:
        _frame(draw, *selected, (site, tall))
    return np.asarray(picture)


def site_at(x: int, y: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the (row, column), in the plane, of a pixel of `picture_of` a grid of this shape."""
    height, width = plane_shape(shape)
    site, tall = _site_side((height, width)), _site_height((height, width))
    return min(y // tall, height - 1), min(x // site, width - 1)


def _site_side(plane: tuple[int, int]) -> int:
    """Return the pixels of a site's side in the picture of a plane (h, w)."""
    return max(1, SIDE // max(plane))


def _site_height(plane: tuple[int, int]) -> int:
    """Return the height of a site in pixels: its side, or more in a strip, which could hardly be seen."""
    return max(_site_side(plane), STRIP) if plane[0] == 1 else _site_side(plane)


def _mark(draw: ImageDraw.ImageDraw, row: int, column: int, sides: tuple[int, int]) -> None:
    site, tall = sides
    right, top, side = (column + 1) * site - 1, row * tall, max(1, site // 3)
    corner = [(right - side, top), (right, top), (right, top + side)]
    draw.polygon(corner, fill="white", outline="black", width=max(1, site // 24))  # one of them shows on any colour


def _frame(draw: ImageDraw.ImageDraw, row: int, column: int, sides: tuple[int, int]) -> None:
    site, tall = sides
    box = (column * site, row * tall, (column + 1) * site - 1, (row + 1) * tall - 1)
    line = max(2, min(site // 12, 5))
    draw.rectangle(box, outline="black", width=line)  # two frames: one of them shows on any colour
    if site > 4 * line:
        inner = (box[0] + line, box[1] + line, box[2] - line, box[3] - line)
        draw.rectangle(inner, outline="white", width=line)
