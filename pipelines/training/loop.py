"""The training loop of every stage."""

import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from accelerate import Accelerator

from codegrid.errors import InputError
from codegrid.files import remove_folder, write_folder
from codegrid.model_card import CARD
from codegrid.model_folder import read_model_config
from codegrid.pipelines.running.cli import Stopped, print_once
from codegrid.pipelines.running.device import ComputeConfig
from codegrid.pipelines.running.processes import check_same_step
from codegrid.pipelines.running.run_folder import Run
from codegrid.pipelines.running.settings import Training
from codegrid.pipelines.running.stopping import FINISH, StopSignals
from codegrid.usable import BEST, CONFIG, LAST, WEIGHTS

from .checkpoints import STATES, Checkpoints, drop_states, saved_states
from .log import Log, short
from .objective import Metrics, Objective
from .trainer import Figures, Trainer

Batch = TypeVar("Batch")

EVERY = 20  # steps between two looks at the metrics


class Trained(NamedTuple):
    """A finished model, as a training function returns it."""

    folder: Path
    step: int  # after so many steps its weights were taken
    metrics: dict[str, Any]  # of these weights, on validation data


def train(
    objective: Objective, settings: Training, compute: ComputeConfig, run: Run, accelerator: Accelerator
) -> list[Metrics]:
    """Train for `settings.steps`, going on from the last saved state. Returns the history: the metrics over the steps.

    Everything random at step t follows from (seed, t), so the state needs no generator.
    """
    is_main = accelerator.is_main_process
    trainer = Trainer(objective, settings, compute, accelerator)
    acts = is_main or trainer.is_sharded  # the weights are gathered from all
    checkpoints = Checkpoints(
        run.folder / STATES, run.identity, trainer.trainable(), settings.save_every,
        accelerator if trainer.is_sharded else None,
    )  # fmt: skip
    start, history = checkpoints.load()
    check_start(start, run, settings.finish_now, accelerator)
    if start:
        print_once(f"{run.shown}: going on from step {start:,} of {settings.steps:,}")
    if is_main:
        run.record["items"] = len(objective.dataset)  # for the doctor: how many make an epoch
        run.start()
    throughput = Throughput(settings.batch_size, objective.items)
    check = FiniteCheck(checkpoints.folder, every=1 if accelerator.device.type == "cpu" else EVERY)
    with Log(accelerator, run, settings, start) as log, StopSignals(settings.finish_now) as signals:
        watch = Watch(run.folder, trainer, throughput, check, history, log)
        done, stop = start, None
        batches = signals.until_stopped(throughput.time(trainer.batches(start)), accelerator)
        for step, batch in enumerate(batches, start):
            done, is_end, stop = step + 1, step + 1 == settings.steps, None
            figures = trainer.find_gradients(batch, step)
            check.note(done, figures | trainer.limit_gradients(step))
            if done % check.every == 0 or is_end:
                check.look()
                stop = signals.agreed(accelerator)
                is_end = is_end or stop == FINISH
            trainer.update(step)
            log.bar.update()
            if acts:
                watch.look(done, figures, is_end)
            if acts and (is_end or stop or checkpoints.due(done)):
                check.look()
                with throughput.pause():
                    checkpoints.save(done, history)
            if stop and stop != FINISH:
                accelerator.wait_for_everyone()  # one that is gone would have the first one killed, which saves
                raise Stopped(stop)
            if stop:
                break
        if signals.interrupted:  # while it waited for a batch
            check.look()
            if done > start:
                checkpoints.save(done, history)
            raise Stopped(signals.interrupted)
    trainer.gather_kept()
    return history


def open_run(settings: Training, compute: ComputeConfig, accelerator: Accelerator, source: Any, **facts: str) -> Run:
    """Take the output folder for a training that starts from a model, or from none, and depends on facts by name."""
    init_from = None if source is None else source.fingerprint()
    with accelerator.main_process_first():  # only one empties the folder
        run = Run(settings.output, settings, precision=compute.precision, init_from=init_from, **facts)
    if run.finished:
        print_once(f"{settings.output} is finished: nothing to do")
    return run


def check_start(start: int, run: Run, finish_now: bool, accelerator: Accelerator) -> None:
    """Raise `InputError` where processes start at different steps, or at the first though the run must go on."""
    check_same_step(accelerator, start)
    if not start and finish_now:
        raise InputError(f"{run.folder} holds no training state: `finish_now` is for a run that was stopped")
    if not start and run.is_longer:
        raise InputError(
            f"{run.folder} holds no training state any more, from which more `steps` could go on: choose another "
            f"`output`, where `init_from` {run.folder} starts from its model"
        )


class Watch(NamedTuple):
    """The work beside the steps: to note figures now and then, and to validate.

    It is the main process's; where weights are sharded, the others take part, and measure nothing.
    """

    folder: Path  # of the run
    trainer: Trainer
    throughput: "Throughput"
    check: "FiniteCheck"
    history: list[Metrics]  # grows
    log: Log

    def look(self, done: int, figures: Figures, is_end: bool) -> None:
        """Note the figures of a step now and then, and validate when it is time, or the end."""
        row: Metrics = {}
        if done % EVERY == 0 or is_end:
            row = {**_as_numbers(figures), **self.trainer.learning_rates()}
            self.log.bar.set_postfix({name: short(row[name]) for name in list(figures)[:1]}, refresh=False)
            self.log.track(done, row, "train")
        if self.trainer.validates(done) or is_end:
            row = self._validate(done, figures)
        if row:
            self.log.write({"step": done, **row})

    def _validate(self, done: int, figures: Figures) -> Metrics:
        """Validate, leave the model as it is now, and report all of it."""
        self.log.track(done, speed := self.throughput.read(), "speed")  # not in the history, which must not vary
        is_main = self.trainer.accelerator.is_main_process
        with self.throughput.pause(), self.trainer.in_one_piece():
            self.check.look_at(done, measured := self.trainer.validate() if is_main else {})
            is_best = self.trainer.remember_best(measured, self.history)
            self.history.append({"step": done, **_as_numbers(figures), **measured})
            if is_main:
                write_usable(self.folder, self.trainer.objective, self.history, is_best)
            self.log.track(done, measured, "validation")
            self.log.show(done, self.trainer.objective)
        self.log.report(done, {**self.history[-1], **speed})
        return {**self.history[-1], **self.trainer.learning_rates(), **speed}


class Throughput:
    """How fast a training loop goes, in items of some name, and which share of its time it waits for data."""

    def __init__(self, batch_size: int, items: str) -> None:
        self.batch_size, self.items = batch_size, items
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

    def __init__(self, states: Path, every: int) -> None:
        self.states, self.every = states, every
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
        """Raise `InputError` with what is wrong after a step, and the last state that is not."""
        saved = saved_states(self.states)
        last = f"the last good state is {saved[-1]}" if saved else "no state was saved yet"
        raise InputError(f"step {step}: {words}; {last}. Start again with a smaller `lr`, in another `output`")


def finish(run: Run, keep_state: bool = False) -> Trained:
    """Mark a run as finished, once its model is saved, and return what it left.

    What served while it ran is removed: the models so far, and training states, but for the last one where it alone
    holds something, or more steps can go on from it.
    """
    run.finish_with(written=[CONFIG, WEIGHTS])
    remove_usable(run.folder)
    states = run.folder / STATES
    drop_states(states, but=saved_states(states)[-1:] if keep_state else [])
    return read_trained(run)


def read_trained(run: Run) -> Trained:
    """Return what a finished run left. Raises `InputError` where that is not there any more, or damaged."""
    try:
        told = read_model_config(run.folder)["provenance"]
    except InputError as error:
        raise InputError(
            f"{run.folder} is finished, but its model is gone or damaged: remove the folder, or choose another `output`"
        ) from error
    rows = {row["step"]: row for row in told["history"]}
    return Trained(run.folder, told["step"], told.get("metrics", rows[told["step"]]))


def write_usable(folder: Path, objective: Objective, history: list[Metrics], is_best: bool) -> None:
    """Write the model so far, for `codegrid.usable` to find: as the last one, and if it is the best so far, as that."""
    objective.save(folder / LAST, history)
    if is_best:
        with write_folder(folder / BEST, index=CONFIG) as staging:
            for name in (CONFIG, WEIGHTS):
                try:  # no file of a model folder is ever changed: it is replaced, so that a second name is enough
                    os.link(folder / LAST / name, staging / name)
                except OSError:  # the disk has no such thing
                    shutil.copyfile(folder / LAST / name, staging / name)


def remove_usable(folder: Path) -> None:
    """Remove the models so far from the folder of a finished run, and nothing that someone put beside them."""
    for place in (folder / LAST, folder / BEST):
        remove_folder(place, (CONFIG, WEIGHTS, CARD))


def _as_numbers(figures: Figures) -> Metrics:
    return {name: value.item() for name, value in figures.items()}
