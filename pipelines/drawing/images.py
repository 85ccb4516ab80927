"""Pictures of images: reconstructions, their codes in colour, and samples.

Shapes: n images, c channels, H W image, h w code grid.
"""

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from codegrid.data.images import to_float
from codegrid.pipelines.running.use_configs import Plot

from .colours import COLOURS, colours_by_nearness, paint, principal_components
from .material import Material
from .pages import Row, columns_for, from_bytes, page_figure, to_unit

MOST_CLASSES = 16  # rows of samples
LONGEST_NAME = 24


def draw_reconstructions(material: Material, settings: Plot) -> Figure:
    """Originals, with their reconstructions below them."""
    columns = columns_for(material.tokenizer.image_size, 12)
    numbers = material.some(4 * columns)
    originals, again = to_float(material.images[numbers]), material.reconstruct(numbers)
    rows, gaps = [], []
    for first in range(0, len(numbers), columns):
        here = slice(first, first + columns)
        rows += [Row("original", to_unit(originals[here])), Row("reconstruction", to_unit(again[here]))]
        gaps += [0.04, 0.25]
    mse = (again.clamp(-1, 1) - originals).square().double().mean(dim=(1, 2, 3))
    psnr = float((10 * torch.log10(4 / mse.clamp_min(1e-10))).mean())  # 4: the range [-1, 1] is 2 wide
    height, width = material.tokenizer.grid_shape
    title = (
        f"Images of the {settings.split} part and their reconstructions from {height}×{width} codes\n"
        f"PSNR of these {len(numbers)}: {psnr:.1f} dB"
    )
    return page_figure(rows, title, gaps)[0]


def draw_codes(material: Material, settings: Plot) -> Figure:
    """Images, beside each its code grid, in which near codes have near colours."""
    tokenizer = material.tokenizer
    height, width = tokenizer.image_size
    columns = columns_for((height, 2 * width), 8)
    numbers = material.some(6 * columns)
    codebook = tokenizer.quantizer.codebook
    grids = paint(material.codes[numbers], colours_by_nearness(codebook), tokenizer.downsampling)
    images = from_bytes(material.images[numbers])
    seam = torch.ones(len(numbers), 3, height, max(1, width // 28))
    pairs = torch.cat([images, seam, grids[..., :height, :width]], dim=3)
    rows = [Row("", pairs[first : first + columns]) for first in range(0, len(numbers), columns)]
    title = "Images and their codes: a colour for each codebook entry, near entries in near colours"
    figure, axes = page_figure(rows, title, [0.12] * len(rows), extra=0.7)
    size = tokenizer.num_embeddings
    share = float(principal_components(codebook).shares[0])
    scale = ScalarMappable(Normalize(1, size), COLOURS)
    bar = figure.colorbar(scale, ax=axes, location="bottom", fraction=0.03, pad=0.02, aspect=60)
    bar.set_ticks(sorted({1, *range(-(-size // 8), size - size // 16, -(-size // 8)), size}))
    bar.set_label(
        f"codebook entries in the order of their first principal component ({share:.0%} of the codebook's variance)"
    )
    return figure


def draw_samples(material: Material, settings: Plot) -> Figure:
    """New images, a row for each class."""
    pipeline = material.pipeline
    columns = columns_for(material.tokenizer.image_size, 12)
    classes = pipeline.classes
    # of very many classes, some
    numbers = list(range(len(classes)))[:: -(-len(classes) // MOST_CLASSES) or 1]
    count = max(1, len(numbers)) if numbers else 6
    labels = [number for number in numbers for _ in range(columns)] or None
    drawn = pipeline.sample(count * columns, labels=labels, seed=settings.seed, batch_size=settings.batch_size)
    images = to_unit(drawn.images).split(columns)
    names = [_shortened(classes[number]) for number in numbers] or [""] * count
    rows = [Row(name, row) for name, row in zip(names, images, strict=True)]
    of = (
        f"{len(numbers)} of {len(classes)} classes, a row each"
        if len(numbers) < len(classes)
        else "a row for each class"
    )
    title = f"New images, {of if classes else 'of no class'}: temperature 1, seed {settings.seed}"
    return page_figure(rows, title, [0.08] * len(rows))[0]


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
