"""Pictures of training: the figures that a model's provenance remembers, over the steps."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from codegrid.pipelines.running.use_configs import Plot

from .material import Material
from .pages import new_figure

TRAINING, HELD_OUT, LINE = "#8fb0cf", "#1f4e86", "#777777"
# of a figure in the history: what it is called
NAMES = {
    "loss": "loss, training batch",
    "reconstruction": "reconstruction error, training batch",
    "reconstruction_error": "reconstruction error, held out",
    "psnr": "held out",
    "batch_perplexity": "training batch",
    "perplexity": "held out",
    "unused_entries": "held out",
    "bits": "training batch",
    "bits_per_code": "held out, moving average of the weights",
}
# title and unit of each panel, and what it shows
TOKENIZER_PANELS = (
    ("Loss and reconstruction error", "MSE / variance", ("loss", "reconstruction", "reconstruction_error")),
    ("Reconstruction", "PSNR in dB", ("psnr",)),
    ("Perplexity of the codes", "codebook entries", ("batch_perplexity", "perplexity")),
    ("Entries never used", "codebook entries", ("unused_entries",)),
)
PRIOR_PANELS = (("Cross-entropy of the codes", "bits per code", ("bits", "bits_per_code")),)


def history_of(model: Any) -> list[dict[str, float]]:
    """The figures over the steps that a trained model's provenance holds; empty where it holds none."""
    history = model.provenance.get("history") if model is not None else None
    rows = history if isinstance(history, list) else []
    return [row for row in rows if isinstance(row, dict) and _is_number(row.get("step"))]


def draw_curves(material: Material, settings: Plot) -> Figure:
    """Loss, reconstruction, perplexity and bits over the steps of both stages."""
    prior = material.pipeline.prior if material.pipeline else None
    stages = [("Tokenizer", history_of(material.tokenizer), TOKENIZER_PANELS)]
    stages.append(("Prior", history_of(prior), PRIOR_PANELS))
    stages = [stage for stage in stages if stage[1]]
    heights = [2 if len(panels) > 1 else 1 for _, _, panels in stages]
    figure = new_figure(11.5, 3.2 * sum(heights))
    parts = figure.subfigures(len(stages), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, rows, (name, history, panels) in zip(parts, heights, stages, strict=True):
        part.suptitle(f"{name}: {int(history[-1]['step']):,} steps", fontsize=13)
        cells = part.subplots(rows, 2 if rows > 1 else 1, squeeze=False)
        for axes, (title, unit, names) in zip(cells.flat, panels, strict=True):
            _panel(axes, history, names, title, unit)
    _mark_limits(parts, stages, material)
    return figure


def _panel(axes: Axes, history: Sequence[dict[str, float]], names: Sequence[str], title: str, unit: str) -> None:
    """Curves of some figures; those of held-out data are dark."""
    for name in names:
        points = [(row["step"], row[name]) for row in history if _is_number(row.get(name))]
        if points:
            is_training = "training" in NAMES[name]
            style = {"color": TRAINING if is_training else HELD_OUT, "linestyle": ":" if name == "loss" else "-"}
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=NAMES[name], **style)
    axes.set(xlabel="step", ylabel=unit, title=title)
    if any(name.endswith("entries") for name in names):
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:,.0f}")
    axes.set_ylim(bottom=0 if names[0] in ("loss", "unused_entries", "batch_perplexity") else None)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    if axes.lines:
        axes.legend(frameon=False, fontsize=9)


def _mark_limits(parts: Sequence[Any], stages: Sequence[tuple], material: Material) -> None:
    """The size of the codebook, and the prior's best point."""
    for part, (name, history, _) in zip(parts, stages, strict=True):
        if name == "Tokenizer":
            size, axes = material.tokenizer.num_embeddings, part.axes[2]
            axes.axhline(size, color=LINE, linestyle="--", linewidth=1, label=f"all {size:,} entries")
            axes.set_ylim(0, 1.06 * size)
            axes.legend(frameon=False, fontsize=9, loc="best")
        elif points := [(row["bits_per_code"], row["step"]) for row in history if _is_number(row.get("bits_per_code"))]:
            bits, step = min(points)
            ring = {"marker": "o", "markersize": 10, "fillstyle": "none", "linestyle": "none", "color": "#c8321e"}
            part.axes[0].plot(step, bits, label=f"fewest bits: {bits:.2f} at step {step:,.0f}", **ring)
            part.axes[0].legend(frameon=False, fontsize=9)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
