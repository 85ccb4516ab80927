"""The training loop of every stage."""

import math
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator

from codegrid.errors import InputError
from codegrid.pipelines.running.cli import Stopped, print_once
from codegrid.pipelines.running.device import ComputeConfig
from codegrid.pipelines.running.processes import check_same_step
from codegrid.pipelines.running.run_folder import Run
from codegrid.pipelines.running.settings import Training
from codegrid.pipelines.running.stopping import StopSignals
from codegrid.progress import progress_bar

from .checkpoints import Checkpoints
from .objective import Metrics, Objective
from .reports import Reporter, short
from .trackers import Log
from .trainer import Figures, Trainer

Batch = TypeVar("Batch")

REPORTS = 10  # validations in a run
EVERY = 20  # steps between two looks at the metrics


def train(
    objective: Objective, settings: Training, compute: ComputeConfig, run: Run, accelerator: Accelerator
) -> list[Metrics]:
    """Train for `settings.steps`, going on from the last saved state. Returns the history: the metrics over the steps.

    Everything random at step t follows from (seed, t), so the state needs no generator.
    """
    is_main = accelerator.is_main_process
    trainer = Trainer(objective, settings, compute, accelerator)
    checkpoints = Checkpoints(run.folder / "state", run.identity, trainer.trainable(), settings.save_every)
    start, history = checkpoints.load()
    check_same_step(accelerator, start)
    if start:
        print_once(f"{run.folder}: going on from step {start:,} of {settings.steps:,}")
    if is_main:
        run.start()
    throughput = Throughput(settings.batch_size, objective.items)
    batches = throughput.time(trainer.batches(start))
    check = FiniteCheck(checkpoints.folder)
    look_every = 1 if accelerator.device.type == "cpu" else EVERY  # a look at a GPU's figures waits for it
    bar = progress_bar(total=settings.steps, initial=start, desc=run.folder.name, unit="step", disable=not is_main)
    reporter = Reporter(settings.steps, start)
    with bar, Log(accelerator, run, settings, start) as log, StopSignals() as signals:
        for step, batch in enumerate(batches, start):
            done, is_end, stop = step + 1, step + 1 == settings.steps, None
            figures = trainer.find_gradients(batch, step)
            check.note(done, figures | trainer.limit_gradients(step))
            if done % look_every == 0 or is_end:
                check.look()
                stop = signals.agreed(accelerator)
            trainer.update(step)
            bar.update()

            if is_main and (done % EVERY == 0 or is_end):
                bar.set_postfix({name: short(figures[name].item()) for name in list(figures)[:1]}, refresh=False)
                log.log(done, {**figures, **trainer.learning_rates()}, "train")
            if is_main and (done % max(1, settings.steps // REPORTS) == 0 or is_end):
                log.log(done, speed := throughput.read(), "speed")  # not in the history, which must not vary
                with throughput.pause():
                    check.look_at(done, measured := trainer.validate())
                    trainer.remember_best(measured, history)
                    log.log(done, measured, "validation")
                    log.show(done, objective)
                history.append({"step": done, **{name: value.item() for name, value in figures.items()}, **measured})
                print_once(reporter.describe(done, {**history[-1], **speed}))
            if is_main and (is_end or stop or checkpoints.due(done)):
                check.look()
                with throughput.pause():
                    checkpoints.save(done, history)
            if stop:
                raise Stopped(stop)
    return history


class Throughput:
    """How fast a training loop goes, and which share of its time it waits for data.

    Args:
        batch_size: items a step.
        items: what they are called, `images` for example.
    """

    def __init__(self, batch_size: int, items: str) -> None:
        self.batch_size = batch_size
        self.items = items
        self._restart()

    def _restart(self) -> None:
        self.steps, self.waited, self.paused = 0, 0.0, 0.0
        self.since = time.perf_counter()

    def time(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Hand the batches on; the time until each is there counts as waiting."""
        asked = time.perf_counter()
        for batch in batches:
            self.waited += time.perf_counter() - asked
            self.steps += 1
            yield batch
            asked = time.perf_counter()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out what is not training: validation, saving."""
        start = time.perf_counter()
        yield
        self.paused += time.perf_counter() - start

    def read(self) -> Metrics:
        """Return items per second and the share of the time spent waiting, 0 ... 1, since this was last called."""
        seconds = max(time.perf_counter() - self.since - self.paused, 1e-9)
        metrics = {f"{self.items}/s": self.steps * self.batch_size / seconds, "waiting": self.waited / seconds}
        self._restart()
        return metrics


class FiniteCheck:
    """Looks at losses and gradients: on a GPU not at every step, because each look waits for it."""

    def __init__(self, states: Path) -> None:
        self.states = states
        self._seen: list[tuple[int, Figures]] = []

    def note(self, step: int, figures: Figures) -> None:
        """Remember the figures of a step, the first being 1."""
        self._seen.append((step, figures))

    def look(self) -> None:
        """Raise `InputError`, naming the first step with a figure that is not finite, if there is one."""
        for step, figures in self._seen:
            for name, figure in figures.items():
                if not math.isfinite(value := figure.item()):
                    self._refuse(step, f"the {name.replace('_', ' ')} is {value}")
        self._seen.clear()

    def look_at(self, step: int, measured: Metrics) -> None:
        """Raise `InputError` where a metric that was measured after a step is not finite."""
        if not all(map(math.isfinite, measured.values())):
            self._refuse(step, f"on validation data the metrics are not finite ({measured})")

    def _refuse(self, step: int, words: str) -> None:
        """Raise `InputError` with what is wrong after a step, and what there is that is not."""
        saved = sorted(path.parent.name for path in self.states.glob("step-*/state.json"))
        last = f"the last good state is {self.states / saved[-1]}" if saved else "no state was saved yet"
        raise InputError(f"step {step}: {words}; {last}. Start again with a smaller `lr`, in another `output`")


def finish(run: Run, keep_state: bool = False) -> None:
    """Mark a run as finished, once its model is saved: its training states have served, but for what only they hold."""
    run.finish_with()
    states = sorted((run.folder / "state").glob("step-*"))
    for state in states[:-1] if keep_state else states:
        shutil.rmtree(state, ignore_errors=True)
    if not keep_state:
        shutil.rmtree(run.folder / "state", ignore_errors=True)
