"""Growth of a tokenizer's training step with the batch, the image and the codebook: times, slopes, a picture."""

import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from codegrid.pipelines.running.device import keep_memory

from .contenders import tokenizer_step


class Axis(NamedTuple):
    """One size that grows, and the sizes that stay fixed."""

    label: str
    flag: str  # the argument of `tokenizer_step`
    values: tuple[int, ...]
    fixed: dict[str, int]


AXES = (
    Axis("images a step (32×32, K 512)", "batch", (32, 64, 128, 256, 512), {}),
    Axis("image side (batch 16, K 512)", "size", (32, 64, 128, 256), {"batch": 16}),
    Axis("codebook entries K (batch 64, 32×32)", "entries", (256, 1024, 4096, 16384), {"batch": 64}),
)


def measure_growth(rounds: int = 5, divisor: int = 1) -> list[list[float]]:
    """Return the seconds of a step, for each value of each axis; the values of an axis take turns.

    `divisor` makes everything smaller: the times then mean nothing.
    """
    keep_memory()
    seconds = []
    for axis in AXES:
        sizes = [{**axis.fixed, axis.flag: value} for value in axis.values]
        steps = [tokenizer_step(**{name: max(2, each // divisor) for name, each in size.items()}) for size in sizes]
        times: list[list[float]] = [[] for _ in steps]
        for number in range(rounds + 1):
            for step, taken in zip(steps, times, strict=True):
                start = time.perf_counter()
                step()
                if number:  # the first round warms up
                    taken.append(time.perf_counter() - start)
        seconds.append([median(taken) for taken in times])
    return seconds


def slopes(values: tuple[int, ...], seconds: list[float]) -> np.ndarray:
    """Return the power with which time grows between neighbouring values: 1 is proportional."""
    return np.diff(np.log(seconds)) / np.diff(np.log(values))


def print_growth(seconds: list[list[float]]) -> None:
    """Print two lines for each axis."""
    print("\na step of stage 1 as it grows: ms, and below the slope from each to the next")
    for axis, times in zip(AXES, seconds, strict=True):
        print(f"{axis.label:38}", *(f"{1e3 * taken:7.0f}" for taken in times))
        print(f"{', '.join(map(str, axis.values)):>38} ", *(f"{power:7.2f}" for power in slopes(axis.values, times)))


def draw_growth(path: Path, seconds: list[list[float]]) -> None:
    """Draw one panel per axis, both scales logarithmic, with the slope beside each segment."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(AXES), figsize=(12, 3.6), sharey=True)
    for panel, axis, times in zip(panels, AXES, seconds, strict=True):
        milliseconds = [1e3 * value for value in times]
        panel.loglog(axis.values, milliseconds, "o-", color="tab:blue")
        for left, right, low, high, power in zip(
            axis.values, axis.values[1:], milliseconds, milliseconds[1:], slopes(axis.values, times), strict=False
        ):
            panel.annotate(
                f"{power:.2f}", ((left * right) ** 0.5, (low * high) ** 0.5), (0, 9), textcoords="offset points",
                ha="right", fontsize=9, color="0.3",
            )  # fmt: skip
        panel.set_xticks(axis.values, [f"{value:,}" for value in axis.values])
        panel.minorticks_off()
        panel.set_xlabel(axis.label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("milliseconds per training step")
    ticks = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
    shown = [tick for tick in ticks if 0.7 * min(map(min, seconds)) < tick / 1e3 < 1.4 * max(map(max, seconds))]
    panels[0].set_yticks(shown, [f"{tick:,}" for tick in shown])
    figure.suptitle(
        "A training step of the tokenizer in bfloat16. Numbers: the slope; 1 is proportional, for the side 2",
        fontsize=11,
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
