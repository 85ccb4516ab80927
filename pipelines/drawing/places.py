"""Where in the image each codebook entry occurs, and what stands there.

Shapes: m entries, n images, c channels, H W image, h w code grid, K num_embeddings.
"""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from codegrid.pipelines.running.use_configs import Plot

from .material import Material
from .pages import from_bytes, new_figure

ENTRIES = 24
COLUMNS = 4
PATCHES = 6  # beside each map, in two rows
FRAME = torch.tensor([0.85, 0.2, 0.1])


def draw_places(material: Material, settings: Plot) -> Figure:
    """For the entries that are used most: a map of where they occur, and pieces of images around such a place."""
    counts = material.counts
    entries = counts.argsort(descending=True, stable=True)[: min(ENTRIES, int((counts > 0).sum()))]
    maps = count_places(material, entries)
    columns = min(COLUMNS, len(entries))
    rows = -(-len(entries) // columns)
    height, width = material.tokenizer.grid_shape
    tall = min(2.0, max(0.6, height / width))
    figure = new_figure(max(9.5, 3.5 * columns), (1.35 * tall + 0.35) * rows + 1.5)
    # map, pieces, and room before the next map
    cells = figure.subplots(rows, 3 * columns, squeeze=False, width_ratios=[1, 1.5, 0.12] * columns)
    for axes in cells.flat:
        axes.set_axis_off()
    for number, entry in enumerate(entries.tolist()):
        left, right = cells[number // columns, 3 * (number % columns) :][:2]
        share = maps[number] / counts[entry]
        last = left.imshow(share / share.max(), cmap="magma", vmin=0, vmax=1)
        left.set_title(f"entry {entry}", fontsize=10, loc="left")
        right.imshow(_patches(material, entry).numpy())
        right.set_title(f"{counts[entry] / counts.sum():.1%} of codes", fontsize=10, loc="left")
    figure.suptitle(
        f"Where the most used entries ({len(entries)} of {len(counts):,}) occur in {material.counted},\n"
        "and pieces of images around such a place (framed)", fontsize=13,
    )  # fmt: skip
    bar = figure.colorbar(last, ax=cells, location="bottom", fraction=0.02, pad=0.02, aspect=60)
    bar.set_label(f"how often at this site of the {height}×{width} grid, as a share of the entry's most frequent site")
    return figure


def count_places(material: Material, entries: torch.Tensor) -> torch.Tensor:
    """How often each of some entries (m,) occurs at each site: (m, h, w)."""
    height, width = material.tokenizer.grid_shape
    rank = torch.full((material.tokenizer.num_embeddings,), -1)
    rank[entries] = torch.arange(len(entries))
    sums = torch.zeros(len(entries) * height * width, dtype=torch.int64)
    sites = torch.arange(height * width).view(height, width)
    for codes in material.code_batches():
        ranks = rank[codes]
        here = (ranks * height * width + sites)[ranks >= 0]
        sums += torch.bincount(here, minlength=len(sums))
    return sums.view(len(entries), height, width)


def _patches(material: Material, entry: int) -> torch.Tensor:
    """Pieces of images around sites of an entry, in two rows, the sites framed: one image (H', W', 3), 0 ... 1."""
    found = (material.codes == entry).nonzero()
    chosen = found[torch.linspace(0, max(0, len(found) - 1), min(PATCHES, len(found))).long()]
    side = material.tokenizer.downsampling
    around = max(side, 4)
    zoom = max(1, 48 // (side + 2 * around))
    patch = (side + 2 * around) * zoom
    columns, gap = PATCHES // 2, max(1, patch // 12)
    page = torch.ones(2 * (patch + gap) - gap, columns * (patch + gap) - gap, 3)
    for number, (image, row, column) in enumerate(chosen.tolist()):
        top, left = (patch + gap) * (number // columns), (patch + gap) * (number % columns)
        page[top : top + patch, left : left + patch] = _cut(material.images[image], row, column, side, around, zoom)
    return page


def _cut(image: torch.Tensor, row: int, column: int, side: int, around: int, zoom: int) -> torch.Tensor:
    """The site (row, column) of an image (c, H, W) uint8 with what is around it, enlarged, and a frame on its edge."""
    pixels = from_bytes(image[None])
    bottom, right = (-size % side for size in pixels.shape[-2:])  # as the tokenizer pads
    padded = F.pad(pixels, (0, right, 0, bottom), mode="replicate")
    padded = F.pad(padded, (around,) * 4, value=0.75)[0]
    size = side + 2 * around
    cut = padded[:, row * side : row * side + size, column * side : column * side + size].permute(1, 2, 0)
    cut = cut.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    low, high = around * zoom - 1, (around + side) * zoom
    for line in (low, high):
        cut[line, low : high + 1] = FRAME
        cut[low : high + 1, line] = FRAME
    return cut
