"""Pages of images, and how a codebook is used, as PNG.

Shapes: n images, c channels, H W image, K num_embeddings.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torchvision.utils import make_grid, save_image

from codegrid.stage1_vqvae.usage import usage_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE_WIDTH = 1000  # pixels, about: small images are enlarged by a whole factor, so that they stay sharp


def make_page(images: torch.Tensor, columns: int | None = None) -> torch.Tensor:
    """Images (n, c, H, W) in [-1, 1], row by row → a page (3, height, width) in [0, 1]; by default about square."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    scale = max(1, PAGE_WIDTH // (columns * (images.shape[3] + 2)))
    page = make_grid((images.float().clamp(-1, 1) + 1) / 2, nrow=columns, padding=2, pad_value=0.5)
    return page.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def save_grid(path: Path, images: torch.Tensor, columns: int | None = None) -> None:
    """Save images (n, c, H, W) in [-1, 1] as one page."""
    save_image(make_page(images, columns), path)


def save_pairs(path: Path, originals: torch.Tensor, reconstructions: torch.Tensor, columns: int = 12) -> None:
    """Save a page whose odd rows are originals, with their reconstructions below them."""
    columns = min(columns, len(originals))
    rows = []
    for first in range(0, len(originals), columns):
        for images in (originals[first : first + columns], reconstructions[first : first + columns]):
            missing = images.new_ones(columns - len(images), *images.shape[1:])
            rows += [images, missing]
    save_grid(path, torch.cat(rows), columns)


def save_usage(path: Path, counts: torch.Tensor) -> None:
    """Save the chart that `usage_figure` draws."""
    usage_figure(counts).savefig(path)


def usage_figure(counts: torch.Tensor) -> "Figure":
    """A chart of how often each codebook entry occurs, the most used first, from its counts (K,)."""
    from matplotlib.figure import Figure

    num_embeddings, usage = len(counts), usage_of(counts)
    shares = counts.sort(descending=True).values / counts.sum() * num_embeddings
    figure = Figure(figsize=(9, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.stairs(shares.numpy(), fill=True, color="#3b6ea5", linewidth=1)  # the line shows a single entry, too
    axes.axhline(1, color="#444444", linewidth=1, linestyle="--")
    axes.annotate("uniform use", (num_embeddings, 1), (0, 4), textcoords="offset points", ha="right", color="#444444")
    axes.set(
        xlim=(-0.004 * num_embeddings, num_embeddings), ylim=(0, None), xlabel="codebook entries, the most used first",
        ylabel="times uniform use",
        title=f"perplexity {usage.perplexity:.0f} of {num_embeddings}, {usage.unused_entries} entries never used",
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    return figure
