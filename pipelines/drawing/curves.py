"""Figures of training: the metrics in a model's provenance, over the steps.

Every number of a history is shown; the names of the metrics decide the panels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from codegrid.protocols import Model

from .figures import new_figure
from .letters import in_figures

if TYPE_CHECKING:
    from codegrid.pipelines.plot import Plot

    from .material import Material

TRAINING = ("#8fb0cf", "#d9a866", "#93bf8a", "#b79ac8", "#c98b8b")
VALIDATION = ("#1f4e86", "#7a3b2e", "#2e6b3a", "#5b3a7a")
MAX_NAME = 40
LINE, BEST = "#777777", "#c8321e"
LEFT_OUT = {"step", "codebook_usage"}  # the second says the same as unused_entries
History = list[dict[str, Any]]


class Panel(NamedTuple):
    """Curves of one unit."""

    title: str
    unit: str
    words: tuple[str, ...]  # a metric belongs here if its name holds one of them
    from_zero: bool


PANELS = (
    Panel("Losses", "terms of the loss", ("loss", "reconstruction_error"), True),
    Panel("Reconstruction", "PSNR in dB", ("psnr",), False),
    Panel("Perplexity of the codes", "codebook entries", ("perplexity",), True),
    Panel("Entries never used", "codebook entries", ("unused_entries",), True),
    Panel("Rise of the error with another image's codes", "MSE / variance", ("error_rise",), True),
    Panel("Entropies of the codes in training", "nats", ("_entropy",), True),
    Panel("Denoising", "mean squared error", ("denoising_",), True),
    Panel("Cross-entropy of the codes", "bits per code", ("bits_per_code",), False),
    Panel("Bits of an image's codes", "bits", ("bits_per_image",), False),
    Panel("Gradients of the losses at the latents", "norm", ("_gradient",), True),
    Panel("Perceptual distance", "", ("perceptual_distance",), True),
    Panel("Logits of the discriminator", "mean logit", ("_logit",), False),
    Panel("Adaptive weight of the adversarial loss", "λ", ("adaptive_weight",), True),
)


def history_of(model: Model) -> History:
    """Return the metrics over the steps in a trained model's provenance; empty if it holds none."""
    history = model.provenance.get("history")
    rows = history if isinstance(history, list) else []
    return [row for row in rows if isinstance(row, dict) and _is_number(row.get("step"))]


def plot_curves(material: Material, settings: Plot) -> Figure:
    """Plot losses, reconstruction, perplexity, bits and whatever else each model has recorded, over the steps."""
    found = material.artifacts
    names = ["Prior"] if len(found.priors) == 1 else [f"Prior {number}" for number in range(len(found.priors))]
    bounds = [" (its bits are an upper bound)" * (prior.likelihood == "bound") for prior in found.priors]
    names = [name + bound for name, bound in zip(names, bounds, strict=True)]
    models: list[tuple[str, Model]] = [("Tokenizer", material.tokenizer), *zip(names, found.priors, strict=True)]
    histories = [(name, history) for name, model in models if (history := history_of(model))]
    panels = [panels_of(history) for _, history in histories]
    heights = [-(-len(each) // 2) for each in panels]
    figure = new_figure(11.5, 3.2 * sum(heights) + 0.5 * len(heights))
    parts = figure.subfigures(len(histories), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, rows, (name, history), its in zip(parts, heights, histories, panels, strict=True):
        part.suptitle(f"{name}: {int(history[-1]['step']):,} steps", fontsize=13)
        cells = list(part.subplots(rows, min(2, len(its)), squeeze=False).flat)
        for axes, (panel, metrics) in zip(cells, its, strict=False):
            _plot_panel(axes, history, panel, metrics)
        for axes in cells[len(its) :]:
            axes.set_axis_off()
    if histories[0][0] == "Tokenizer":
        _mark_size(parts[0], {grid.num_embeddings for grid in material.tokenizer.layout})
    return figure


def panels_of(history: History) -> list[tuple[Panel, list[str]]]:
    """Return the panels that a history fills, each with its metrics; a metric without a panel gets its own."""
    metrics = [name for name in dict.fromkeys(name for row in history for name in row) if name not in LEFT_OUT]
    metrics = [name for name in metrics if _points(history, name)]
    # a loss of a single term is shown once
    metrics = [name for name in metrics if name == "loss" or _points(history, name) != _points(history, "loss")]
    panels = [(panel, [name for name in metrics if any(word in name for word in panel.words)]) for panel in PANELS]
    placed = {name for _, names in panels for name in names}
    others = [(Panel(_words(name), "", (name,), False), [name]) for name in metrics if name not in placed]
    return [(panel, names) for panel, names in panels if names] + others


def _plot_panel(axes: Axes, history: History, panel: Panel, metrics: Sequence[str]) -> None:
    """Plot curves of some metrics, dark ones for validation data."""
    colours = {True: iter(TRAINING * len(metrics)), False: iter(VALIDATION * len(metrics))}
    for name in metrics:
        in_training = name.startswith("batch_") or name.endswith(("loss", "_logit", "_weight"))
        label = f"{_words(name.removeprefix('batch_'))}, {'training batch' if in_training else 'validation'}"
        style: dict[str, Any] = {"color": next(colours[in_training]), "zorder": 2 if in_training else 3}
        axes.plot(*zip(*_points(history, name), strict=True), marker="o", markersize=4, label=label, **style)
    if "bits_per_code" in metrics:
        _mark_best(axes, _points(history, "bits_per_code"))
    axes.set(xlabel="step", ylabel=panel.unit, title=panel.title)
    if any(name.endswith("entries") for name in metrics):
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:,.0f}")
    least = min(value for name in metrics for _, value in _points(history, name))
    axes.set_ylim(bottom=0 if panel.from_zero and least >= 0 else None)  # that of an entropy can be negative
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.legend(frameon=False, fontsize=9)


def _mark_best(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Mark the fewest bits."""
    step, bits = min(points, key=lambda point: point[1])
    ring: dict[str, Any] = {"marker": "o", "markersize": 10, "fillstyle": "none", "linestyle": "none", "color": BEST}
    axes.plot(step, bits, label=f"fewest bits: {bits:.2f} at step {step:,.0f}", **ring)


def _mark_size(part: Any, sizes: set[int]) -> None:
    """Mark the size of the codebook if it is the same for all grids."""
    for axes in part.axes:
        if axes.get_title() == "Perplexity of the codes" and len(sizes) == 1:
            (size,) = sizes
            axes.axhline(size, color=LINE, linestyle="--", linewidth=1, label=f"all {size:,} entries")
            axes.set_ylim(0, 1.06 * size)
            axes.legend(frameon=False, fontsize=9, loc="best")


def _points(history: History, name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in history if _is_number(row.get(name))]


def _words(name: str) -> str:
    return in_figures(name.replace("_", " ").replace("psnr", "PSNR"), MAX_NAME)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
