"""Figures of the codebooks: their entries in the plane, and how often they are used.

Shapes: K num_embeddings, D embedding_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from codegrid.errors import import_extra
from codegrid.protocols import Tokenizer
from codegrid.stage1_vqvae.usage import usage_of

from .colours import COLOURS, principal_components
from .figures import new_figure, some_grids

if TYPE_CHECKING:
    from codegrid.pipelines.plot import Plot

    from .material import Material

MAX_POINTS = 2**16  # entries of a grid to plot: more would be one blot
USED, UNUSED, LINE = "#3b6ea5", "#c8321e", "#444444"


def usage_figure(counts: Sequence[torch.Tensor]) -> Figure:
    """Plot how often each code occurs, the most used first, from the counts (K,) of each grid."""
    chosen = some_grids(len(counts))
    figure = new_figure(9, 1 + 3.4 * len(chosen))
    for axes, number in zip(figure.subplots(len(chosen), squeeze=False)[:, 0], chosen, strict=True):
        _plot_usage(axes, counts[number], f"grid {number}: " if len(counts) > 1 else "")
    return figure


def save_usage(path: Path, counts: Sequence[torch.Tensor]) -> None:
    """Save the figure that `usage_figure` plots as PNG."""
    usage_figure(counts).savefig(path)


def _plot_usage(axes: Axes, counts: torch.Tensor, name: str) -> None:
    """Plot one grid's counts (K,)."""
    num_embeddings, usage = len(counts), usage_of(counts)
    shares = counts.sort(descending=True).values / counts.sum().clamp_min(1) * num_embeddings
    axes.stairs(shares.numpy(), fill=True, color=USED, linewidth=1)  # the line makes a single entry visible too
    axes.axhline(1, color=LINE, linewidth=1, linestyle="--")
    axes.annotate("uniform use", (num_embeddings, 1), (0, 4), textcoords="offset points", ha="right", color=LINE)
    axes.set(
        xlim=(-0.004 * num_embeddings, num_embeddings), ylim=(0, None), xlabel="codebook entries, the most used first",
        ylabel="times uniform use",
        title=f"{name}perplexity {usage.perplexity:,.0f} of {num_embeddings:,}, "
        f"{usage.unused_entries:,} entries never used",
    )  # fmt: skip
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)


def plot_histogram(material: Material, settings: Plot) -> Figure:
    """Plot how often each code of each grid occurs, the most used first."""
    return usage_figure(material.counts)


def listed_entries(tokenizer: Tokenizer) -> dict[int, torch.Tensor]:
    """Return the entries (K, D) of grids, by their numbers, that can be listed and are not too many to plot."""
    listed = {}
    for number in some_grids(len(tokenizer.layout)):
        if tokenizer.layout[number].num_embeddings <= MAX_POINTS:
            listed[number] = tokenizer.quantizer.entries(number)
    return {number: entries.detach().cpu().float() for number, entries in listed.items() if entries is not None}


def plot_codebook(material: Material, settings: Plot) -> Figure:
    """Plot the entries as points, large and bright if they are used often, or as crosses if never."""
    listed = listed_entries(material.tokenizer)
    shown, several = some_grids(len(material.tokenizer.layout)), len(material.tokenizer.layout) > 1
    columns = min(len(listed), 2)
    rows = -(-len(listed) // columns)
    figure = new_figure(10, 8) if columns == 1 else new_figure(14, 0.8 + 6 * rows)
    cells = figure.subplots(rows, columns, squeeze=False).flat
    for number, entries in listed.items():
        _plot_entries(next(cells), entries, material.counts[number], settings, f"grid {number}: " if several else "")
    for axes in cells:
        axes.set_axis_off()
    title = f"Codebook entries, and how often they occur in {material.counted}"
    if left_out := [str(number) for number in shown if number not in listed]:
        title += f"\nleft out: grid {', '.join(left_out)}, whose entries cannot be listed or are too many"
    figure.suptitle(title, fontsize=13)
    return figure


def _plot_entries(axes: Axes, entries: torch.Tensor, counts: torch.Tensor, settings: Plot, name: str) -> None:
    """Plot one grid's entries (K, D), which occurred `counts` (K,) times."""
    points, labels = _project(entries, settings)
    points, on_lattice = _spread(points)
    used = counts > 0
    times = counts / counts.sum().clamp_min(1) * len(counts)
    small = min(1.0, (1000 / len(counts)) ** 0.5)  # many entries need small points
    if used.any():
        dots = axes.scatter(
            points[used, 0], points[used, 1], s=(12 + 50 * times[used].clamp_max(8)) * small, c=times[used],
            cmap=COLOURS, norm=_log_norm(times[used]), alpha=0.85, linewidths=0.4 * small, edgecolors="white", zorder=3,
        )  # fmt: skip
        bar = axes.figure.colorbar(dots, ax=axes, pad=0.02)
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        bar.ax.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        bar.set_label("use, in times of uniform use (size and colour)")
    if not used.all():
        axes.scatter(points[~used, 0], points[~used, 1], s=36 * small, marker="x", color=UNUSED, label="never used")
        axes.legend(loc="best")
    unused = int((~used).sum())
    axes.set(xlabel=labels[0], ylabel=labels[1])
    title = f"{name}{len(counts):,} entries; used: {len(counts) - unused:,}, never used: {unused:,}"
    axes.set_title(title + "\nentries in the same place are spread around it" * on_lattice, pad=10)
    axes.spines[["top", "right"]].set_visible(False)


def _project(entries: torch.Tensor, settings: Plot) -> tuple[torch.Tensor, list[str]]:
    """Project entries (K, D) to the plane (K, 2), and return them with the names of its axes."""
    if settings.projection == "umap":
        return _umap(entries, settings.seed), ["UMAP, first dimension", "UMAP, second dimension"]
    points, shares = principal_components(entries)
    words = "principal component ({:.0%} of variance)"
    first, second = (words.format(float(share)) for share in shares)
    return points, [f"first {first}", f"second {second}"]


def _spread(points: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Spread coinciding points (K, 2) around their place; also return whether there were any.

    Entries of a lattice coincide if they differ only in a third direction.
    """
    places, group, sizes = points.double().round(decimals=4).unique(dim=0, return_inverse=True, return_counts=True)
    if len(places) == len(points):
        return points, False
    ranks = torch.empty_like(group)
    ranks[group.argsort(stable=True)] = torch.arange(len(points)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    room = (places.amax(0) - places.amin(0)).amax() / len(places) ** 0.5  # between two places, about
    radii, angles = 0.35 * room * ((ranks + 0.5) / sizes[group]).sqrt(), 2.39996 * ranks  # like seeds in a sunflower
    around = torch.stack([radii * angles.cos(), radii * angles.sin()], dim=1)
    return points + around * (sizes[group] > 1)[:, None], True


def _log_norm(times: torch.Tensor) -> LogNorm:
    low, high = float(times.min()), float(times.max())
    return LogNorm(low, high) if low < high else LogNorm(low / 2, high * 2)


def _umap(entries: torch.Tensor, seed: int) -> torch.Tensor:
    """Project entries (K, D) to the plane (K, 2)."""
    neighbours = max(2, min(15, len(entries) - 1))
    reducer = import_umap().UMAP(n_neighbors=neighbours, random_state=seed)
    return torch.as_tensor(reducer.fit_transform(entries.numpy()))


def import_umap() -> ModuleType:
    """Return the package umap-learn. Raises `InputError` if it is not installed."""
    return import_extra("umap", "`projection` umap", "umap")
