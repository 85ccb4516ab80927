"""Training metrics as lines of JSON, and metrics and pictures for the trackers: TensorBoard, and Weights & Biases.

Nothing that is learnt depends on them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from typing_extensions import Self

from codegrid.errors import import_extra
from codegrid.files import write_folder
from codegrid.pipelines.drawing.sheets import to_pixels
from codegrid.pipelines.running.device import without_compiling

if TYPE_CHECKING:
    from codegrid.pipelines.running.run_folder import Run
    from codegrid.pipelines.running.settings import Training

    from .objective import Objective

METRICS = "metrics.jsonl"  # in the output folder: an object a line, written while the run goes on
FOLDER = "logs"  # below the output folder
PROJECT = "codegrid"


def tracker_options(settings: Training) -> dict[str, Any]:
    """Return what `Accelerator` must be told for `log_with`; `InputError` where the tracker's package is missing."""
    name = settings.log_with
    if name == "none":
        return {}
    import_extra(name, f"`log_with` {name}", "log" if name == "tensorboard" else name)
    folder = Path(settings.output)
    return {"log_with": name, "project_config": ProjectConfiguration(str(folder), logging_dir=str(folder / FOLDER))}


class Log:
    """The metrics file and the trackers of one training run, from `with` to its end.

    Args:
        accelerator: made with `tracker_options`.
        run: whose folder holds the logs.
        settings: of the command.
        start: steps that are done already: what was logged after them is of work that was lost, and is replaced.
    """

    def __init__(self, accelerator: Accelerator, run: Run, settings: Training, start: int) -> None:
        self.accelerator = accelerator
        self.lines = _open_lines(run.folder, start) if accelerator.is_main_process else None
        name = settings.log_with
        if name == "none" or not accelerator.is_main_process:
            return
        folder = run.folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        if name == "tensorboard":
            # it would make each resumption a run of its own of the settings; they are in run.json
            config: dict[str, Any] | None = None
            options: dict[str, Any] = {"purge_step": start + 1}
        else:
            config = {key: _plain(value) for key, value in asdict(settings).items()}
            options = {"dir": str(folder), "id": run.identity[:16], "resume": "allow"}
        accelerator.init_trackers(PROJECT, config=config, init_kwargs={name: options})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.lines:
            self.lines.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers = []  # they are not to be finished again at the end of all

    def log(self, step: int, metrics: Mapping[str, float | torch.Tensor], group: str) -> None:
        """Note metrics of the first `step` steps, under `group/name`."""
        named = {f"{group}/{name.replace('/s', '_per_second')}": float(value) for name, value in metrics.items()}
        if self.lines:
            print(json.dumps({"step": step, **named}), file=self.lines, flush=True)
        if self.accelerator.trackers:
            self.accelerator.log(named, step=step)

    def show(self, step: int, objective: Objective) -> None:
        """Note the pictures that an objective draws."""
        if not self.accelerator.trackers:
            return
        with torch.no_grad(), without_compiling():
            pages = {name: to_pixels(page) for name, page in objective.draw().items()}
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: page[None] for name, page in pages.items()}, step=step, dataformats="NHWC")
            else:
                tracker.log_images({name: [page] for name, page in pages.items()}, step=step)


def _open_lines(folder: Path, start: int) -> TextIO:
    """Open the metrics file behind the lines of the first `start` steps: later ones are of work that was lost."""
    kept = []
    with suppress(OSError, ValueError, TypeError, KeyError):  # ends at a line that was cut off
        for line in (folder / METRICS).read_text(encoding="utf-8").splitlines():
            kept += [line + "\n"] if json.loads(line)["step"] <= start else []
    with write_folder(folder) as staging:
        (staging / METRICS).write_text("".join(kept), encoding="utf-8")
    return (folder / METRICS).open("a", encoding="utf-8")


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
