"""Reports of a training run: a progress bar, lines of at most 80 columns, OUTPUT/metrics.jsonl, and trackers.

Training itself does not depend on them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from typing_extensions import Self

from codegrid.errors import import_extra
from codegrid.files import write_folder
from codegrid.locks import check_held, real_path
from codegrid.pipelines.drawing.sheets import to_pixels
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.device import without_compiling
from codegrid.pipelines.running.run_folder import Run
from codegrid.pipelines.running.settings import Training
from codegrid.progress import progress_bar, time_left

from .objective import Metrics, Objective

FOLDER = "logs"  # of the trackers, below the output folder
METRICS_FILE = "metrics.jsonl"
PROJECT = "codegrid"
WIDTH = 80


def tracker_options(settings: Training) -> dict[str, Any]:
    """Return the arguments of `Accelerator` for `log_with`. Raises `InputError` if the tracker's package is missing."""
    name = settings.log_with
    if name == "none":
        return {}
    import_extra(name, f"`log_with` {name}", "log" if name == "tensorboard" else "")
    folder = real_path(settings.output)
    return {"log_with": name, "project_config": ProjectConfiguration(str(folder), logging_dir=str(folder / FOLDER))}


class Log:
    """The log of one training run, a context manager. Only the main process writes.

    Args:
        accelerator: made with `tracker_options`.
        run: the run; its folder holds the logs.
        settings: the command's settings.
        start: steps that are already done. Anything logged after them belongs to lost work, and is replaced.
    """

    def __init__(self, accelerator: Accelerator, run: Run, settings: Training, start: int) -> None:
        self.accelerator, self.steps, self.start, self.since = accelerator, settings.steps, start, time.monotonic()
        is_main = accelerator.is_main_process
        self._lines = _open_metrics(run.folder / METRICS_FILE, start) if is_main else None
        if is_main and settings.log_with != "none":
            self._start_tracker(settings.log_with, run, settings)
        self.bar = progress_bar(
            total=settings.steps, initial=start, desc=run.folder.name, unit="step", disable=not is_main
        )

    def _start_tracker(self, name: str, run: Run, settings: Training) -> None:
        folder = run.folder / FOLDER
        for place in (folder, folder / PROJECT, folder / name):  # the trackers make the last two
            check_held(place)
        folder.mkdir(parents=True, exist_ok=True)
        if name == "tensorboard":
            # no config: TensorBoard would show each continuation as a separate run; the settings are in run.json
            config: dict[str, Any] | None = None
            options: dict[str, Any] = {"purge_step": self.start + 1}
        else:
            config = {
                key: value if isinstance(value, bool | int | float | str) else str(value)
                for key, value in asdict(settings).items()
            }
            options = {"dir": str(folder), "id": run.identity[:16], "resume": "allow"}
        self.accelerator.init_trackers(PROJECT, config=config, init_kwargs={name: options})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.__exit__(*error)
        if self._lines:
            self._lines.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers = []  # so that `end_training` does not finish them again

    def write(self, row: Metrics) -> None:
        """Add a line to metrics.jsonl: the metrics of a step, including `step`. All are finite numbers."""
        if self._lines:
            self._lines.write(json.dumps(row, allow_nan=False) + "\n")
            self._lines.flush()

    def report(self, done: int, figures: Mapping[str, float]) -> None:
        """Print the progress after `done` steps, and below it the figures."""
        print_once(describe(done, self.steps, time_left(done, self.steps, self.start, self.since), figures))

    def track(self, step: int, metrics: Mapping[str, float | torch.Tensor], group: str) -> None:
        """Log metrics after `step` steps in the trackers, under `group/name`."""
        if self.accelerator.trackers:
            named = {f"{group}/{name.replace('/s', '_per_second')}": float(value) for name, value in metrics.items()}
            self.accelerator.log(named, step=step)

    def show(self, step: int, objective: Objective) -> None:
        """Log the pictures that an objective draws in the trackers."""
        if not self.accelerator.trackers:
            return
        with torch.no_grad(), without_compiling():
            pages = {name: to_pixels(page) for name, page in objective.draw().items()}
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: page[None] for name, page in pages.items()}, step=step, dataformats="NHWC")
            else:
                tracker.log_images({name: [page] for name, page in pages.items()}, step=step)


def describe(done: int, steps: int, times: str, figures: Mapping[str, float]) -> str:
    """Return a report: a run's progress, and below it the names and values of figures in as few lines as possible."""
    lines = [f"step {done:,} of {steps:,}, {times}", ""]
    for words in (f"  {name} {short(value)}" for name, value in figures.items() if name != "step"):
        if len(lines[-1]) + len(words) <= WIDTH:
            lines[-1] += words
        else:
            lines.append(words)
    return "\n".join(lines).rstrip()


def short(value: float) -> str:
    """Return a number with four digits, or in full if it is large: `0.01235`, `12,345`."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _open_metrics(path: Path, start: int) -> IO[str]:
    """Open metrics.jsonl to append lines, keeping an earlier process's lines up to step `start`."""
    with write_folder(path.parent) as staging, (staging / path.name).open("w", encoding="utf-8") as file:
        if start and path.is_file() and not path.is_symlink():
            with path.open(encoding="utf-8", errors="replace") as earlier:
                file.writelines(line for line in earlier if line.endswith("\n") and _step_of(line) <= start)
    return path.open("a", encoding="utf-8")


def _step_of(line: str) -> float:
    """Return the step of a line; infinity if it has none."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return float("inf")
    return step if isinstance(step, int) else float("inf")
