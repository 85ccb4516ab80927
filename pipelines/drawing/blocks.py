"""Sheets of images under headings: new images by class, and completions beside the pictures that they complete.

Shapes: n images, c channels, H W image.
"""

import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps

from codegrid.codes import NO_LABEL

from .letters import drawable, fit, load_font
from .sheets import to_pixels, to_unit

SIDE = 900  # pixels of the longer side, about: small images are enlarged by a whole factor, so that they stay sharp
ACROSS = 10  # classes beside each other
LETTERS = 16  # pixels of a line of text, or more on a large sheet
NO_CLASS = "no class"
PAPER, INK = "#ececec", "#222222"


class Block(NamedTuple):
    """Images under a heading."""

    heading: str  # drawable; empty for none
    images: torch.Tensor  # (n, c, H, W) in [-1, 1], row by row
    columns: int

    @property
    def rows(self) -> int:
        """The number of rows."""
        return -(-len(self.images) // self.columns)


Bands = Sequence[Sequence[Block]]  # blocks beside each other, in bands below each other


class Measures(NamedTuple):
    """Pixels of a sheet's parts."""

    height: int  # of an image, enlarged
    width: int
    letters: int  # size of the font
    gap: int  # between images

    @property
    def line(self) -> int:
        """The height of a line of text."""
        return round(1.35 * self.letters)

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Return where an image of a block begins: pixels from the left and from the top."""
        return column * (self.width + self.gap), row * (self.height + self.gap)

    def size(self, block: Block) -> tuple[int, int]:
        """Return width and height of a block without its heading."""
        right, bottom = self.corner(block.rows, block.columns)
        return right - self.gap, bottom - self.gap


def save_by_class(
    path: Path,
    images: torch.Tensor,
    count: int,
    labels: np.ndarray | None,
    classes: Sequence[str],
    of: str = "classes",
) -> None:
    """Save images as a PNG file, each class below its name, with a note on how many images are not shown.

    Args:
        path: the file.
        images: the first images (m, c, H, W) in [-1, 1].
        count: n, the number of all images.
        labels: the classes (n,) of all, NO_LABEL for none; None if there are no classes.
        classes: names of the classes; empty if they have only numbers.
        of: what a note calls the classes.
    """
    shown = [None] * len(images) if labels is None else labels[: len(images)].tolist()
    note = f"the first {len(images)} of {count:,}" if len(images) < count else ""
    if note and labels is not None and (in_all := len(np.unique(labels))) > len(set(shown)):
        note += f", {len(set(shown))} of {in_all:,} {of}"
    draw_blocks(arrange_by_class(images, shown, classes), note=note).save(path, "PNG")


def arrange_by_class(images: torch.Tensor, labels: Sequence[int | None], classes: Sequence[str]) -> Bands:
    """Lay images (n, c, H, W) out in a block for each class, so that their sheet is about square.

    `labels` are their classes, NO_LABEL for no particular one, None if there are none; `classes` as for
    `save_by_class`.
    """
    groups: dict[int | None, list[int]] = {}
    for number, label in enumerate(labels):
        groups.setdefault(label, []).append(number)
    height, width = images.shape[2:]
    across = max(1, min(ACROSS, round(ACROSS * (height / width) ** 0.5)))
    num_bands = -(-len(groups) // across)
    beside = -(-len(groups) // num_bands)
    most = max(map(len, groups.values()))

    def oblongness(columns: int) -> float:
        return abs(math.log(beside * columns * width / (num_bands * -(-most // columns) * height)))

    columns = min(range(1, most + 1), key=oblongness)
    blocks = [Block(heading_of(label, classes), images[numbers], columns) for label, numbers in groups.items()]
    return [blocks[first : first + beside] for first in range(0, len(blocks), beside)]


def heading_of(label: int | None, classes: Sequence[str]) -> str:
    """Return the name of a class as it can be drawn, or its number; empty if there are no classes."""
    if label is None or label == NO_LABEL:
        return "" if label is None else NO_CLASS
    return drawable(classes[label], label) if classes else str(label)


def draw_blocks(bands: Bands, row_names: Sequence[str] = (), note: str = "") -> Image.Image:
    """Draw blocks of images of one size, each below its heading.

    Args:
        bands: the blocks, in bands.
        row_names: drawable names to the left of the first band's rows.
        note: a line below everything.
    """
    pixels = _measure(bands)
    names = [fit(name, pixels.letters, 10 * pixels.letters) for name in row_names]
    room = pixels.line * max(map(len, names), default=0)
    pixels = pixels._replace(gap=max(pixels.gap, room - pixels.height))
    widths = [max(_width(block, pixels) for block in slot if block) for slot in zip_longest(*bands)]
    drawn: list[Image.Image] = []
    for band in bands:
        headings = [fit(block.heading, pixels.letters, width) for block, width in zip(band, widths, strict=False)]
        above = pixels.line * max(map(len, headings))
        parts = [
            _draw_block(block, heading, width, above, pixels)
            for block, heading, width in zip(band, headings, widths, strict=False)
        ]
        if names and not drawn:
            parts.insert(0, _draw_row_names(names, above, pixels))
        drawn.append(_join(parts, 3 * pixels.gap, below=False))
    if note:
        width = max(picture.width for picture in drawn)
        lines = fit(note, pixels.letters, width)
        drawn.append(Image.new("RGB", (width, pixels.line * len(lines)), PAPER))
        _write(drawn[-1], lines, (0, 0), pixels, "la")
    return ImageOps.expand(_join(drawn, 3 * pixels.gap, below=True), 2 * pixels.gap, PAPER)


def _measure(bands: Bands) -> Measures:
    """Return the measures of a sheet that is about `SIDE` pixels large, or larger if the images are."""
    height, width = bands[0][0].images.shape[2:]
    in_all = max(sum(block.columns for block in band) for band in bands) * width
    scale = max(1, round(SIDE / max(in_all, sum(max(block.rows for block in band) for band in bands) * height)))
    letters = max(LETTERS, scale * in_all * LETTERS // (SIDE + 200))  # a large sheet is shown reduced
    return Measures(scale * height, scale * width, letters, letters // 4)


def _width(block: Block, pixels: Measures) -> int:
    """Return the width of a block's images, or the least that its heading needs to be readable."""
    return max(
        pixels.size(block)[0], min(math.ceil(load_font(pixels.letters).getlength(block.heading)), 6 * pixels.letters)
    )


def _draw_block(block: Block, heading: Sequence[str], width: int, above: int, pixels: Measures) -> Image.Image:
    """Draw the images below the lines of a heading, both centred in this width."""
    inner, height = pixels.size(block)
    picture = Image.new("RGB", (width, above + height), PAPER)
    _write(picture, heading, (width / 2, above - pixels.line * len(heading)), pixels, "ma")
    for number, image in enumerate(block.images):
        x, y = pixels.corner(*divmod(number, block.columns))
        enlarged = Image.fromarray(to_pixels(to_unit(image[None])[0].expand(3, -1, -1))).resize(
            (pixels.width, pixels.height), Image.Resampling.NEAREST
        )
        picture.paste(enlarged, ((width - inner) // 2 + x, above + y))
    return picture


def _draw_row_names(names: Sequence[Sequence[str]], above: int, pixels: Measures) -> Image.Image:
    """Draw the names, each centred on the height of its row."""
    font = load_font(pixels.letters)
    width = max(math.ceil(font.getlength(line)) for lines in names for line in lines)
    picture = Image.new("RGB", (width, above + pixels.corner(len(names), 0)[1]), PAPER)
    for row, lines in enumerate(names):
        top = above + pixels.corner(row, 0)[1] + (pixels.height - pixels.line * len(lines)) / 2
        _write(picture, lines, (0, top), pixels, "la")
    return picture


def _write(
    picture: Image.Image, lines: Sequence[str], place: tuple[float, float], pixels: Measures, anchor: str
) -> None:
    """Write lines below each other, the first one at a place."""
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((place[0], place[1] + number * pixels.line), line, INK, load_font(pixels.letters), anchor)


def _join(pictures: Sequence[Image.Image], gap: int, below: bool) -> Image.Image:
    """Put pictures below or beside each other."""
    along = [picture.height if below else picture.width for picture in pictures]
    across = max(picture.width if below else picture.height for picture in pictures)
    length = sum(along) + gap * (len(along) - 1)
    sheet = Image.new("RGB", (across, length) if below else (length, across), PAPER)
    place = 0
    for picture, its in zip(pictures, along, strict=True):
        sheet.paste(picture, (0, place) if below else (place, 0))
        place += its + gap
    return sheet
