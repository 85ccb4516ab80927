"""Pictures of the codebook: its entries in the plane, how often they are used, and where.

Shapes: K num_embeddings, D embedding_dim, n images, c channels, H W image, h w code grid.
"""

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from codegrid.errors import InputError
from codegrid.pipelines.running.use_configs import Plot

from .colours import COLOURS, principal_components
from .material import Material
from .pages import new_figure
from .pictures import usage_figure


def draw_codebook(material: Material, settings: Plot) -> Figure:
    """The entries as points, large and bright where they are used often; those that never are as crosses."""
    codebook = material.tokenizer.quantizer.codebook.detach().cpu()
    if settings.projection == "umap":
        points, labels = _umap(codebook, settings.seed), ["UMAP, first dimension", "UMAP, second dimension"]
    else:
        points, shares = principal_components(codebook)
        order = ("first", "second")
        labels = tuple(
            f"{name} principal component ({share:.0%} of variance)" for name, share in zip(order, shares, strict=True)
        )
    counts = material.counts
    used = counts > 0
    times = counts / counts.sum() * len(counts)
    figure = new_figure(10, 8)
    axes = figure.add_subplot()
    small = min(1.0, (1000 / len(counts)) ** 0.5)  # many entries need small points
    dots = axes.scatter(
        *points[used].T, s=(12 + 50 * times[used].clamp_max(8)) * small, c=times[used], cmap=COLOURS,
        norm=_log_norm(times[used]), alpha=0.85, linewidths=0.4, edgecolors="white", zorder=3,
    )  # fmt: skip
    if not used.all():
        axes.scatter(*points[~used].T, s=36 * small, marker="x", color="#c8321e", label="never used")
        axes.legend(loc="best")
    bar = figure.colorbar(dots, ax=axes, pad=0.02)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.set_label("use, in times of uniform use (size and colour)")
    axes.set(xlabel=labels[0], ylabel=labels[1])
    unused = int((~used).sum())
    axes.set_title(
        f"The {len(counts):,} codebook entries, and how often they occur in {material.counted}\n"
        f"used: {len(counts) - unused:,}, never used: {unused:,}", pad=10,
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _log_norm(times: torch.Tensor) -> LogNorm:
    low, high = float(times.min()), float(times.max())
    return LogNorm(low, high) if low < high else LogNorm(low / 2, high * 2)


def _umap(codebook: torch.Tensor, seed: int) -> torch.Tensor:
    """(K, D) → (K, 2)."""
    reducer = require_umap().UMAP(n_neighbors=max(2, min(15, len(codebook) - 1)), random_state=seed)
    return torch.as_tensor(reducer.fit_transform(codebook.float().numpy()))


def require_umap() -> object:
    """The package umap-learn; `InputError` where it is not installed."""
    try:
        import umap
    except ImportError:
        raise InputError("--projection umap needs a package: pip install umap-learn, or use --projection pca") from None
    return umap


def draw_histogram(material: Material, settings: Plot) -> Figure:
    """How often each entry occurs, the most used first."""
    return usage_figure(material.counts)
