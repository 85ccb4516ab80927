"""Figures of images: reconstructions, their codes in colour, and samples.

Shapes: n images, c channels, H W image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from codegrid.codes import describe_layout
from codegrid.data.images import to_float
from codegrid.protocols import Prior

from .colours import COLOURS, beside, colours_of, paint_all, principal_components
from .figures import Row, columns_for, from_bytes, name_grids, plot_rows, some_grids, to_unit
from .letters import in_figures
from .material import Material

if TYPE_CHECKING:
    from codegrid.pipelines.plot import Plot

MAX_CLASSES = 16  # rows of samples
MAX_NAME = 24
TILE = 112  # pixels at least of an image beside its codes


def plot_reconstructions(material: Material, settings: Plot) -> Figure:
    """Plot originals, with their reconstructions below them."""
    columns = columns_for(material.tokenizer.signal.size, 12)
    numbers = material.some(4 * columns)
    originals, again = to_float(material.images[numbers]), material.reconstruct(numbers)
    rows = []
    for first in range(0, len(numbers), columns):
        here = slice(first, first + columns)
        rows.append(Row("original", to_unit(originals[here]), 0.04))
        rows.append(Row("reconstruction", to_unit(again[here]), 0.25))
    mse = (again.clamp(-1, 1) - originals).square().double().mean(dim=(1, 2, 3))
    psnr = float((10 * torch.log10(4 / mse.clamp_min(1e-10))).mean())  # 4: the range [-1, 1] is 2 wide
    layout = describe_layout(material.tokenizer.layout)
    title = (
        f"Images of the {settings.split} part, and their reconstructions from {layout}\n"
        f"PSNR of these {len(numbers)}: {psnr:.1f} dB"
    )
    return plot_rows(rows, title)[0]


def plot_codes(material: Material, settings: Plot) -> Figure:
    """Plot images, beside each a picture of each of its code grids, in which near codes have near colours."""
    tokenizer = material.tokenizer
    height, width = tokenizer.signal.size
    layout, shown = tokenizer.layout, some_grids(len(tokenizer.layout))
    columns = columns_for((height, (1 + len(shown)) * width), 8)
    numbers = material.some(6 * columns)
    zoom = -(-TILE // max(height, width))  # some grids would not divide a small image evenly
    images = from_bytes(material.images[numbers]).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    codes, colours = tuple(material.codes[grid][numbers] for grid in shown), colours_of(tokenizer)
    painted = paint_all(codes, [colours[grid] for grid in shown], (zoom * height, zoom * width))
    tiles = beside([images, *painted], max(1, zoom * width // 28))
    rows = [Row("", tiles[first : first + columns], 0.12) for first in range(0, len(numbers), columns)]
    listed = [tokenizer.quantizer.entries(number) for number in shown]
    near = "a colour for each codebook entry, near entries in near colours"
    grids = "their codes" if len(layout) == 1 else f"their codes in {name_grids(len(layout))}, coarse to fine"
    title = f"Images and {grids}: {near if None not in listed else 'a colour for each code'}"
    with_bar = [entries for entries in listed if entries is not None]
    figure, axes = plot_rows(rows, title, extra=0.7 if with_bar else 0)
    if with_bar:
        bar = figure.colorbar(
            ScalarMappable(Normalize(0, 1), COLOURS), ax=axes, location="bottom", fraction=0.03, pad=0.02, aspect=60
        )
        bar.set_ticks([0, 1], labels=["first", "last"])
        shares = ", ".join(f"{float(principal_components(entries).shares[0]):.0%}" for entries in with_bar)
        of = "the codebook's variance" if len(with_bar) == 1 else "the variance of each grid's codebook"
        bar.set_label(f"codebook entries in the order of their first principal component ({shares} of {of})")
    return figure


def plot_samples(material: Material, settings: Plot) -> Figure:
    """Plot new images, a row for each class, or for each prompt on the card of a prior over texts."""
    pipeline = material.artifacts.pipeline
    columns, of_what = columns_for(material.tokenizer.signal.size, 12), "prompt" if pipeline.prompts else "class"
    classes = pipeline.prompts or class_names(pipeline.priors)
    # of very many classes, only some
    numbers = list(range(len(classes)))[:: -(-len(classes) // MAX_CLASSES) or 1]
    count = len(numbers) or 6
    asked = [number for number in numbers for _ in range(columns)] or None
    prompts = [classes[number] for number in asked] if asked and pipeline.prompts else None
    labels = None if prompts else asked
    drawn = pipeline.sample(
        count * columns, labels, settings.seed, settings.batch_size, progress=False, prompts=prompts
    )
    images = to_unit(drawn.images).split(columns)
    names = [in_figures(classes[number], MAX_NAME, number) for number in numbers] or [""] * count
    rows = [Row(name, row, 0.08) for name, row in zip(names, images, strict=True)]
    of = (
        f"{len(numbers)} of {len(classes)} {of_what}{'s' if pipeline.prompts else 'es'}, a row each"
        if len(numbers) < len(classes)
        else f"a row for each {of_what}"
    )
    title = f"New images, {of if classes else 'of no class'}: temperature 1, seed {settings.seed}"
    return plot_rows(rows, title)[0]


def class_names(priors: tuple[Prior, ...]) -> list[str]:
    """Return the names of the classes that priors can be asked for, or their numbers; empty without classes.

    Lone UTF-16 surrogates, which JSON can hold, are escaped, so that the names can be printed.
    """
    conditions = next((prior.conditions for prior in priors if prior.conditions.num_classes), None)
    if conditions is None:
        return []
    names = [name.encode("utf-8", "backslashreplace").decode() for name in conditions.classes]
    return names or [str(number) for number in range(conditions.num_classes)]
