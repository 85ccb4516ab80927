"""Training a prior for a number of minutes: as many steps as fit into them on this machine."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from codegrid.files import write_json
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.training.prior import train_prior
from codegrid.tensors import read_json

TIMED = 12  # steps that tell how many fit


def train_for(minutes: float, settings: TrainPrior, least: int = 100) -> dict[str, float]:
    """Train a prior for about these minutes, at least `least` steps, and return the steps and the minutes it took.

    The number of steps is kept in a file beside the prior's folder, so that a stopped run goes on to the same end.
    """
    path = Path(settings.output).with_name(f"{Path(settings.output).name}-steps.json")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"steps": max(least, count_steps(minutes, settings))})
    steps = read_json(path)["steps"]
    return {"steps": steps, "minutes": _seconds(replace(settings, steps=steps)) / 60}


def count_steps(minutes: float, settings: TrainPrior) -> int:
    """Return how many steps fit into some minutes, from two short runs; what does not depend on steps cancels out."""
    with tempfile.TemporaryDirectory() as folder:
        once, twice = (
            _seconds(replace(settings, output=f"{folder}/{number}", steps=number * TIMED)) for number in (1, 2)
        )
    return int(60 * minutes * TIMED / max(twice - once, 1e-3))


def _seconds(settings: TrainPrior) -> float:
    start = time.perf_counter()
    train_prior(settings)
    return time.perf_counter() - start
