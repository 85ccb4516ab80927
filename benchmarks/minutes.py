"""Training for a number of minutes: as many steps as fit into them.

On a CPU, minutes are those of two cores, by the CPU time of this process: what runs beside it does not count, nor how
many threads it has. With an accelerator they are minutes of the clock.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from codegrid.files import write_json
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.prior import train_prior
from codegrid.tensors import read_json

Settings = TypeVar("Settings", TrainPrior, TrainTokenizer)
CORES = 2
TIMED = 12  # steps that tell how many fit, if they take long enough
CLEAR = 0.25  # by what share a run of twice as many steps must take longer: what differs by less may be noise
MOST = 2**10 * TIMED  # steps; if they make no clear difference even then, the smallest clear one is assumed


def train_for(
    minutes: float, settings: Settings, least: int = 100, train: Callable[[Settings], object] = train_prior
) -> dict[str, float]:
    """Train a model for about these minutes, at least `least` steps; return the steps, and the minutes that they take.

    The number of steps is kept in a file beside the model's folder, so that a stopped run goes on to the same end.
    """
    path = Path(settings.output).with_name(f"{Path(settings.output).name}-steps.json")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        of_one = minutes_of_a_step(train, settings)
        steps = max(least, int(minutes / of_one))
        write_json(path, {"steps": steps, "minutes": steps * of_one})
    planned: dict[str, float] = read_json(path)
    train(replace(settings, steps=planned["steps"]))
    return planned


def minutes_of_a_step(train: Callable[[Settings], object], settings: Settings) -> float:
    """Return the minutes that a step takes, from two short runs: what does not depend on steps cancels out.

    They become longer until they differ by more than noise.
    """
    with tempfile.TemporaryDirectory() as folder:

        def run(steps: int) -> float:
            return _minutes(train, replace(settings, output=f"{folder}/{steps}", steps=steps))

        run(1)  # what only the first run of a process does
        steps, once, twice = TIMED, run(TIMED), run(2 * TIMED)
        while twice < (1 + CLEAR) * once and steps < MOST:
            steps, once, twice = 2 * steps, twice, run(4 * steps)
    return max(twice - once, CLEAR * once) / steps


def _minutes(train: Callable[[Settings], object], settings: Settings) -> float:
    by_clock = torch.cuda.is_available() or torch.backends.mps.is_available()
    clock, per_minute = (time.perf_counter, 60) if by_clock else (time.process_time, 60 * CORES)
    start = clock()
    train(settings)
    return (clock() - start) / per_minute
