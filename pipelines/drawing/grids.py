"""Figure of what each of several grids of codes carries.

Shapes: n images, c channels, H W image, *shape the sites of each grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure

from codegrid.codes import Codes
from codegrid.data.images import to_float
from codegrid.pipelines.evaluation.carried import Carried, measure_carried, swap_grid
from codegrid.stage1_vqvae.usage import usage_of

from .figures import Row, columns_for, name_grids, plot_rows, some_grids, to_unit
from .material import Material

if TYPE_CHECKING:
    from codegrid.pipelines.plot import Plot


def plot_grids(material: Material, settings: Plot) -> Figure:
    """Plot images from their first grids alone, and with one grid of another image, beside errors and usage."""
    images = material.artifacts.images
    assert images is not None
    carried = measure_carried(material.tokenizer, images, settings.batch_size)
    assert carried is not None, "one grid carries everything: see `choose`"
    numbers = material.some(columns_for(material.tokenizer.signal.size, 10))
    originals = to_unit(to_float(material.images[numbers]))
    codes = tuple(grid[numbers].to(material.artifacts.device) for grid in material.codes)
    chosen = some_grids(len(codes))
    rows = [
        Row("original", originals, 0.06),
        Row(f"its codes\nerror {carried.error:.4f}", _decode(material, codes), 0.3),
        *(Row(name, images, 0.06) for name, images in _coarse(material, codes, chosen)),
        Row("another image", originals.roll(1, 0), 0.06),
    ]
    rows[-2] = rows[-2]._replace(gap=0.3)
    for number in chosen:
        row = Row(_describe(material, carried, number), _decode(material, swap_grid(codes, number)), 0.06)
        rows.append(row)
    title = (
        f"What each of {name_grids(len(codes))} carries\n"
        "images from their first grids alone, and with one grid of another image\n"
        f"error: MSE / variance, of {carried.num_images} images; perplexity: in {material.counted}"
    )
    return plot_rows(rows, title)[0]


def _describe(material: Material, carried: Carried, number: int) -> str:
    """Say in words which grid is the other image's, what that does to the error, and how its codes are used."""
    usage, grid = usage_of(material.counts[number]), material.tokenizer.layout[number]
    return (
        f"its grid {number}, {'×'.join(map(str, grid.shape))}\nerror {carried.rises[number]:+.4f}\n"
        f"perplexity {usage.perplexity:,.1f} of {grid.num_embeddings:,}"
    )


def _coarse(material: Material, codes: Codes, chosen: list[int]) -> list[tuple[str, torch.Tensor]]:
    """Return images (n, 3, H, W) of the first grids of codes (n, *shape) alone, by names; all grids are left out."""
    found = []
    for number in [number for number in chosen if number < len(codes) - 1]:
        drawn = tuple(torch.full_like(grid, place <= number).bool() for place, grid in enumerate(codes))
        name = "grid 0 alone" if number == 0 else f"grids 0 to {number}"
        found.append((name, to_unit(material.tokenizer.preview(codes, drawn))))
    return found


def _decode(material: Material, codes: Codes) -> torch.Tensor:
    """Return images (n, 3, H, W), 0 ... 1, of codes (n, *shape)."""
    return to_unit(material.tokenizer.decode(codes))
