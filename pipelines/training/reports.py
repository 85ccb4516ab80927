"""Reports of a training run: lines of at most 80 columns for people, terminals and log files."""

import time
from collections.abc import Mapping

from codegrid.progress import time_left

WIDTH = 80


class Reporter:
    """Says how far a run is, how long that took, and how long the rest will.

    Args:
        steps: of the whole run.
        start: steps that were done before.
    """

    def __init__(self, steps: int, start: int = 0) -> None:
        self.steps, self.start, self.since = steps, start, time.monotonic()

    def describe(self, done: int, figures: Mapping[str, float]) -> str:
        """Return the report after `done` steps: where the run is, and below it the figures."""
        times = time_left(done, self.steps, self.start, self.since)
        others = {name: value for name, value in figures.items() if name != "step"}
        return "\n".join([f"step {done:,} of {self.steps:,}, {times}", *in_columns(others)])


def in_columns(figures: Mapping[str, float]) -> list[str]:
    """Return names and values in as few lines as they fit in."""
    lines: list[str] = []
    for name, value in figures.items():
        words = f"{name} {short(value)}"
        if lines and len(lines[-1]) + 2 + len(words) <= WIDTH:
            lines[-1] += f"  {words}"
        else:
            lines.append(f"  {words}")
    return lines


def short(value: float) -> str:
    """Return four digits of a figure, and large ones in full: `0.01235`, `12,345`."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
