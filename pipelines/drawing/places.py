"""Maps of where in the image each codebook entry occurs, with pieces of the images.

Shapes: m entries, n images, c channels, H W image, *shape the sites of a grid, K num_embeddings.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from codegrid.codes import Layout, Sides

from .colours import as_plane, plane_shape
from .figures import from_bytes, name_grids, new_figure, some_grids
from .material import Material

if TYPE_CHECKING:
    from codegrid.pipelines.plot import Plot

MAX_ENTRIES = 24  # of all grids together
COLUMNS = 4
PATCHES = 6  # beside each map, in two rows
MAX_AROUND = 16  # pixels around a site
FRAME = torch.tensor([0.85, 0.2, 0.1])
CAPTION: dict[str, Any] = {"fontsize": 10, "loc": "left"}


def plot_places(material: Material, settings: Plot) -> Figure:
    """Plot a map of where each of the most used entries occurs, and pieces of images around such places."""
    layout = material.tokenizer.layout
    shown = some_grids(len(layout))
    of_each = max(1, MAX_ENTRIES // len(shown) // COLUMNS) * COLUMNS
    chosen = {number: most_used(material.counts[number], of_each) for number in shown}
    columns = min(COLUMNS, max(map(len, chosen.values())))
    heights = []
    for number, entries in chosen.items():
        height, width = plane_shape(layout[number].shape)
        heights += [0.35 + 1.35 * min(2.0, max(0.6, height / width))] * -(-len(entries) // columns)
    figure = new_figure(max(9.5, 3.5 * columns), sum(heights) + 1.5)
    # map, pieces, and room before the next map
    widths = [1, 1.5, 0.12] * columns
    cells = figure.subplots(len(heights), len(widths), squeeze=False, width_ratios=widths, height_ratios=heights)
    for axes in cells.flat:
        axes.set_axis_off()
        axes.set_anchor("NW")  # captions in one line, whatever the shapes below them
    top = 0
    for number, entries in chosen.items():
        maps = count_places(material, number, entries)
        for place, entry in enumerate(entries.tolist()):
            left, right = cells[top + place // columns, 3 * (place % columns) :][:2]
            last = left.imshow(maps[place] / maps[place].max(), cmap="magma", vmin=0, vmax=1)
            left.set_title(f"grid {number}, entry {entry}" if len(layout) > 1 else f"entry {entry}", **CAPTION)
            if len(layout[number].shape) == 2:  # sites of other grids have no place in the image
                right.imshow(_patches(material, number, entry).numpy())
            share = material.counts[number][entry] / material.counts[number].sum()
            right.set_title(f"{share:.1%} of codes", **CAPTION)
        top += -(-len(entries) // columns)
    which = f"{len(chosen[0])} of {layout[0].num_embeddings:,}" if len(layout) == 1 else f"of {name_grids(len(layout))}"
    figure.suptitle(
        f"Where the most used entries ({which}) occur in {material.counted},\n"
        "and pieces of images around such a place (framed)", fontsize=13,
    )  # fmt: skip
    bar = figure.colorbar(last, ax=cells, location="bottom", fraction=0.02, pad=0.02, aspect=60, panchor=False)
    bar.set_label("how often at this site of the grid, as a share of the entry's most frequent site")
    return figure


def most_used(counts: torch.Tensor, at_most: int) -> torch.Tensor:
    """Return the numbers (m,) of the entries that occur most often, given their counts (K,)."""
    return counts.argsort(descending=True, stable=True)[: min(at_most, int((counts > 0).sum()))]


def count_places(material: Material, number: int, entries: torch.Tensor) -> torch.Tensor:
    """Count how often each of some entries (m,) of a grid occurs at each site of its plane: (m, h, w)."""
    grid = material.tokenizer.layout[number]
    height, width = plane_shape(grid.shape)
    rank = torch.full((grid.num_embeddings,), -1)
    rank[entries] = torch.arange(len(entries))
    sums = torch.zeros(len(entries) * height * width, dtype=torch.int64)
    sites = torch.arange(height * width).view(height, width)
    for codes in material.code_batches():
        ranks = rank[as_plane(codes[number])]
        here = (ranks * height * width + sites)[ranks >= 0]
        sums += torch.bincount(here, minlength=len(sums))
    return sums.view(len(entries), height, width)


def _patches(material: Material, number: int, entry: int) -> torch.Tensor:
    """Return pieces of images around sites of an entry, in two rows, the sites framed: (H', W', 3), 0 ... 1."""
    codes = as_plane(material.codes[number])
    found = (codes == entry).nonzero()
    chosen = found[torch.linspace(0, max(0, len(found) - 1), min(PATCHES, len(found))).long()]
    (rows, columns), pixels = codes.shape[1:], material.images.shape[-2:]
    side = site_size(material.tokenizer.layout, number, pixels)
    around = max(4, min(*side, MAX_AROUND))
    zoom = max(1, 48 // (max(side) + 2 * around))
    height, width = ((length + 2 * around) * zoom for length in side)
    in_row, gap = PATCHES // 2, max(1, width // 12)
    sheet = torch.ones(2 * (height + gap) - gap, in_row * (width + gap) - gap, 3)
    for place, (image, row, column) in enumerate(chosen.tolist()):
        top, left = (height + gap) * (place // in_row), (width + gap) * (place % in_row)
        padded = _pad(material.images[image], (rows, columns), side, around)
        cut = _cut(padded, (row * side[0], column * side[1]), side, around, zoom)
        sheet[top : top + height, left : left + width] = cut
    return sheet


def site_size(layout: Layout, number: int, pixels: Sides) -> tuple[int, int]:
    """Return the (height, width) in pixels of a site of a grid (h, w), for images (H, W).

    7 sites of 4 pixels below 4 sites are padded to 8, so that these have 8 pixels, and not a fourth of 28.
    """
    shapes = [grid.shape for grid in layout[number:] if len(grid.shape) == 2]
    found = []
    for axis, size in enumerate(pixels):
        lengths = [shape[axis] for shape in shapes]
        side = -(-size // lengths[-1])
        for coarse, fine in reversed(list(pairwise(lengths))):
            factor = -(-fine // coarse)
            side = side * factor if -(-fine // factor) == coarse else -(-size // coarse)
        found.append(side)
    return found[0], found[1]


def _pad(image: torch.Tensor, sites: tuple[int, int], side: tuple[int, int], around: int) -> torch.Tensor:
    """Pad an image (c, H, W) uint8 to whole sites, as tokenizers do, and put grey around it: (3, H', W'), 0 ... 1."""
    pixels = from_bytes(image[None])
    bottom, right = (n * length - size for n, length, size in zip(sites, side, pixels.shape[-2:], strict=True))
    padded = F.pad(pixels, (0, right, 0, bottom), mode="replicate")
    return F.pad(padded, (around,) * 4, value=0.75)[0]


def _cut(image: torch.Tensor, corner: tuple[int, int], side: tuple[int, int], around: int, zoom: int) -> torch.Tensor:
    """Cut a site and its surroundings out of a padded image (3, H, W), enlarged, with a frame on the site's edge."""
    (top, left), (height, width) = corner, (length + 2 * around for length in side)
    cut = image[:, top : top + height, left : left + width].permute(1, 2, 0)
    cut = cut.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    first, (low, last) = around * zoom - 1, ((around + length) * zoom for length in side)
    for line in (first, low):
        cut[line, first : last + 1] = FRAME
    for line in (first, last):
        cut[first : low + 1, line] = FRAME
    return cut
