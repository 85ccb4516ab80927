"""Training metrics and pictures for the trackers: TensorBoard, and Weights & Biases.

Nothing that is learnt depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from typing_extensions import Self

from codegrid.errors import import_extra
from codegrid.locks import check_held, real_path
from codegrid.pipelines.drawing.sheets import to_pixels
from codegrid.pipelines.running.device import without_compiling

if TYPE_CHECKING:
    from codegrid.pipelines.running.run_folder import Run
    from codegrid.pipelines.running.settings import Training

    from .objective import Objective

FOLDER = "logs"  # below the output folder
PROJECT = "codegrid"


def tracker_options(settings: Training) -> dict[str, Any]:
    """Return what `Accelerator` must be told for `log_with`; `InputError` where the tracker's package is missing."""
    name = settings.log_with
    if name == "none":
        return {}
    import_extra(name, f"`log_with` {name}", "log" if name == "tensorboard" else name)
    folder = real_path(settings.output)
    return {"log_with": name, "project_config": ProjectConfiguration(str(folder), logging_dir=str(folder / FOLDER))}


class Log:
    """The trackers of one training run, from `with` to its end; without a tracker it does nothing.

    Args:
        accelerator: made with `tracker_options`.
        run: whose folder holds the logs.
        settings: of the command.
        start: steps that are done already: what was logged after them is of work that was lost, and is replaced.
    """

    def __init__(self, accelerator: Accelerator, run: Run, settings: Training, start: int) -> None:
        self.accelerator = accelerator
        name = settings.log_with
        if name == "none" or not accelerator.is_main_process:
            return
        folder = run.folder / FOLDER
        for place in (folder, folder / PROJECT, folder / name):  # the last two are of the trackers
            check_held(place)
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
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers = []  # they are not to be finished again at the end of all

    def log(self, step: int, metrics: Mapping[str, float | torch.Tensor], group: str) -> None:
        """Note metrics of the first `step` steps, under `group/name`."""
        if self.accelerator.trackers:
            named = {f"{group}/{name.replace('/s', '_per_second')}": float(value) for name, value in metrics.items()}
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


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
