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
from codegrid.model_config import read_model_config
from codegrid.pipelines.running.cli import Stopped, print_once
from codegrid.pipelines.running.device import ComputeConfig
from codegrid.pipelines.running.processes import check_same_step
from codegrid.pipelines.running.run_folder import Run
from codegrid.pipelines.running.settings import Training
from codegrid.pipelines.running.stopping import FINISH, StopSignals
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.registry import TABLES
from codegrid.usable import BEST, CONFIG, LAST, MODEL_FILES, PARTS, WEIGHTS

from .checkpoints import STATES, Checkpoints, drop_states, saved_states
from .log import Log, short
from .objective import Metrics, Objective
from .trainer import Figures, Trainer

Batch = TypeVar("Batch")

EVERY = 20  # steps between two reads of the metrics


class Trained(NamedTuple):
    """A finished model, as a training function returns it."""

    folder: Path
    step: int  # the number of steps after which its weights were kept
    metrics: dict[str, Any]  # of these weights, on validation data


def train(
    objective: Objective, settings: Training, compute: ComputeConfig, run: Run, accelerator: Accelerator
) -> list[Metrics]:
    """Train for `settings.steps`, continuing from the last saved state. Returns the history, one entry per validation.

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
        print_once(f"{run.shown}: continuing from step {start:,} of {settings.steps:,}")
    if is_main:
        run.record["items"] = len(objective.dataset)  # the size of an epoch, for the doctor
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
                accelerator.wait_for_everyone()  # if one left early, the first one would be killed while it saves
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


def open_run(settings: Training, compute: ComputeConfig, accelerator: Accelerator, source: Any, **facts: Any) -> Run:
    """Open the output folder of a training run that starts from the model `source`, if any, and depends on `facts`."""
    init_from = None if source is None else source.fingerprint()
    with accelerator.main_process_first():  # only one empties the folder
        facts |= {"precision": compute.precision, "init_from": init_from, **_of_length(settings)}
        run = Run(settings.output, settings, **facts)
    if run.finished:
        print_once(f"{settings.output} is finished: nothing to do")
    return run


def _of_length(settings: Training) -> dict[str, Any]:
    """Return what makes the steps of a training at a constant rate depend on how many there are."""
    if not isinstance(settings, TrainTokenizer) or settings.lr_schedule != "constant":
        return {}
    names = (settings.quantizer, *(settings.options.get("level_quantizers") or ()))
    anneals = any(getattr(TABLES["quantizer"][name], "anneals", False) for name in names)
    return {"quantizer_steps": settings.steps} if anneals else {}


def check_start(start: int, run: Run, finish_now: bool, accelerator: Accelerator) -> None:
    """Raise `InputError` if processes start at different steps, or at the first although the run must continue."""
    check_same_step(accelerator, start)
    if not start and finish_now:
        raise InputError(f"{run.folder} holds no training state: `finish_now` is for a run that was stopped")
    if not start and run.is_longer:
        raise InputError(
            f"{run.folder} no longer holds a training state, which more `steps` need: choose another `output`, and "
            f"start from its model with `init_from` {run.folder}"
        )


class Watch(NamedTuple):
    """The work besides the steps: noting figures now and then, and validating.

    The main process does it; if weights are sharded, the others take part, but measure nothing.
    """

    folder: Path  # of the run
    trainer: Trainer
    throughput: "Throughput"
    check: "FiniteCheck"
    history: list[Metrics]  # grows
    log: Log

    def look(self, done: int, figures: Figures, is_end: bool) -> None:
        """Note the figures every few steps, and validate when it is time or at the end."""
        row: Metrics = {}
        if done % EVERY == 0 or is_end or done - 1 in getattr(self.trainer.objective, "noted", ()):
            row = {**_as_numbers(figures), **self.trainer.learning_rates(done)}
            self.log.bar.set_postfix({name: short(row[name]) for name in list(figures)[:1]}, refresh=False)
            self.log.track(done, row, "train")
        if self.trainer.validates(done) or is_end:
            row = self._validate(done, figures)
        if row:
            self.log.write({"step": done, **row})

    def _validate(self, done: int, figures: Figures) -> Metrics:
        """Validate, save the model as it is now, and report the metrics."""
        self.log.track(done, speed := self.throughput.read(), "speed")  # not in the history, which is reproducible
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
        return {**self.history[-1], **self.trainer.learning_rates(done), **speed}


class Throughput:
    """The speed of a training loop in items per second, and the share of its time spent waiting for data."""

    def __init__(self, batch_size: int, items: str) -> None:
        self.batch_size, self.items = batch_size, items
        self._restart()

    def _restart(self) -> None:
        self.steps, self.waited, self.paused = 0, 0.0, 0.0
        self.since = time.perf_counter()

    def time(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches; the time until each one arrives counts as waiting."""
        asked = time.perf_counter()
        for batch in batches:
            self.waited += time.perf_counter() - asked
            self.steps += 1
            yield batch
            asked = time.perf_counter()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out the time within, which is not training: validation, saving."""
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
    """Checks that losses and gradients are finite: on a GPU not at every step, since each check waits for it."""

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
        """Raise `InputError` if a metric that was measured after a step is not finite."""
        if not all(map(math.isfinite, measured.values())):
            self._refuse(step, f"metrics on validation data are not finite ({measured})")

    def _refuse(self, step: int, words: str) -> None:
        """Raise `InputError` with what is wrong at a step, and the last good state."""
        saved = saved_states(self.states)
        last = f"the last good state is {saved[-1]}" if saved else "no state was saved yet"
        raise InputError(f"step {step}: {words}; {last}. Start again with a smaller `lr` in another `output`")


def finish(run: Run, keep_state: bool = False) -> Trained:
    """Mark a run whose model is saved as finished, and return the model.

    Files that were only needed during the run are removed: intermediate models and training states. With `keep_state`
    the last state stays: it alone holds something, or more steps can continue from it.
    """
    run.finish_with(written=[CONFIG, WEIGHTS])
    remove_usable(run.folder)
    states = run.folder / STATES
    drop_states(states, but=saved_states(states)[-1:] if keep_state else [])
    return read_trained(run)


def read_trained(run: Run) -> Trained:
    """Return the model of a finished run. Raises `InputError` if it is gone or damaged."""
    try:
        told = read_model_config(run.folder)["provenance"]
    except InputError as error:
        raise InputError(
            f"{run.folder} is finished, but its model is gone or damaged: remove the folder, or choose another `output`"
        ) from error
    rows = {row["step"]: row for row in told["history"]}
    return Trained(run.folder, told["step"], told.get("metrics", rows[told["step"]]))


def write_usable(folder: Path, objective: Objective, history: list[Metrics], is_best: bool) -> None:
    """Write the model so far to last/ and, if it is the best so far, to best/, where `codegrid.usable` finds it."""
    objective.save(folder / LAST, history)
    if is_best:
        with write_folder(folder / BEST, index=CONFIG) as staging:
            for name in (name for name in MODEL_FILES if (folder / LAST / name).exists()):
                try:  # files of a model folder are replaced, never changed, so a hard link is enough
                    os.link(folder / LAST / name, staging / name)
                except OSError:  # the disk has no hard links
                    shutil.copyfile(folder / LAST / name, staging / name)


def remove_usable(folder: Path) -> None:
    """Remove the intermediate models from a finished run's folder, and nothing that anyone put beside them."""
    for place in (folder / LAST, folder / BEST):
        for part, names in PARTS.items():
            remove_folder(place / part, names)
        remove_folder(place, (*MODEL_FILES, CARD))


def _as_numbers(figures: Figures) -> Metrics:
    return {name: value.item() for name, value in figures.items()}
