"""The training loop of both stages."""

import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from codegrid.data.loading import StepSampler, check_shares, load_batches, pieces_of
from codegrid.pipelines.running.cli import Stopped
from codegrid.pipelines.running.device import Execution, autocast, refuse_unequal, without_compiling
from codegrid.pipelines.running.run_folder import Run
from codegrid.pipelines.running.stopping import StopSignals

from .checkpoints import States, Trained
from .divergence import FiniteCheck, limit_gradient, refuse
from .speed import Speed
from .trackers import Log, Pages

Figures = dict[str, float]

REPORTS = 10  # validations in a run
WARMUP_STEPS = 500  # at most a tenth of all
EVERY = 20  # steps between two looks at the figures


@dataclass
class Stage:
    """What one stage brings to the loop."""

    model: nn.Module
    dataset: Any  # items by number, in batches
    loss: Callable[[nn.Module, Any], dict[str, torch.Tensor]]  # of a batch; the term to minimise is called "loss"
    validate: Callable[[nn.Module], Figures]  # of the model, or of its average
    average: nn.Module | None = None  # a moving average of the weights, which is validated in their place
    best: nn.Module | None = None  # becomes the average as it was when `criterion` was lowest
    criterion: str = ""  # a validated figure
    max_norm: float = math.inf  # of the gradient
    items: str = "images"  # what the data set holds
    num_workers: int = 0
    to_compile: list[nn.Module] = field(default_factory=list)
    # called before each piece of a step's batch: whether more of them follow
    announce: Callable[[bool], None] = lambda more_follow: None
    # what a log shows of the model, or of its average: pages (3, H, W) in [-1, 1], by name
    draw: Callable[[nn.Module], Pages] = lambda model: {}

    def modules(self) -> dict[str, nn.Module]:
        """Everything that training moves, by name."""
        parts = {"model": self.model, "average": self.average, "best": self.best}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def validated(self) -> nn.Module:
        """The model, or its average."""
        return self.average.module if self.average else self.model


def train(stage: Stage, settings: Any, execution: Execution, run: Run, accelerator: Accelerator) -> list[Figures]:
    """Train for `settings.steps`, going on from the last saved state. Returns the validated figures.

    Everything random at step t follows from (seed, t), so the state needs no generator.
    """
    check_shares(settings.batch_size, accelerator.num_processes, settings.accumulate)
    is_main = accelerator.is_main_process
    optimizer = execution.adam(stage.model.parameters(), settings.lr)
    states = States(run.folder / "state", run.identity, Trained(stage.modules(), optimizer), settings.save_every)
    start, history = states.load()
    refuse_unequal(accelerator, start)
    steps = StepSampler(
        len(stage.dataset), settings.batch_size, settings.seed, start, settings.steps,
        accelerator.process_index, accelerator.num_processes,
    )  # fmt: skip
    for part in stage.to_compile if execution.compiled else []:
        part.compile()
    model = accelerator.prepare_model(stage.model)
    if is_main:
        run.start()
    speed = Speed(settings.batch_size, stage.items)
    batches = speed.watch(load_batches(stage.dataset, steps, stage.num_workers))
    check = FiniteCheck(states.folder)
    look_every = 1 if accelerator.device.type == "cpu" else EVERY  # a look at a GPU's figures waits for it
    bar = tqdm(total=settings.steps, initial=start, desc=run.folder.name, disable=not is_main)
    with bar, Log(accelerator, run, settings, start) as log, StopSignals() as signals:
        for step, batch in enumerate(batches, start):
            set_lr(optimizer, settings.lr * lr_factor(step, settings.steps, settings.lr_schedule))
            figures = _find_gradients(stage, model, batch, step, settings, execution, accelerator)
            done = step + 1
            is_end, stop = done == settings.steps, None
            check.note(done, loss=figures["loss"], gradient=limit_gradient(stage.model, stage.max_norm))
            if done % look_every == 0 or is_end:
                check.look()
                stop = signals.agreed(accelerator)
            optimizer.step()
            optimizer.zero_grad()
            if stage.average:
                stage.average.update_parameters(stage.model)
            bar.update()

            if is_main and (done % EVERY == 0 or is_end):
                bar.set_postfix(_readable(figures, history), refresh=False)
                log.log(done, {**figures, "lr": optimizer.param_groups[0]["lr"]}, "train")
            if is_main and (done % max(1, settings.steps // REPORTS) == 0 or is_end):
                log.log(done, now := speed.read(), "speed")  # not in the history, which must be the same each time
                with speed.pause():
                    history.append({"step": done, **{name: value.item() for name, value in figures.items()}})
                    history[-1] |= _validate(stage, history, states.folder, log)
                bar.write("  ".join(f"{name} {_short(value)}" for name, value in {**history[-1], **now}.items()))
            if is_main and (is_end or stop or states.due(done)):
                check.look()
                with speed.pause():
                    states.save(done, history)
            if stop:
                raise Stopped(stop)
    return history


def _find_gradients(
    stage: Stage, model: nn.Module, batch: Any, step: int, settings: Any, execution: Execution, accelerator: Accelerator
) -> dict[str, torch.Tensor]:
    """Forward and backward, piece by piece. Returns the means of the pieces' figures."""
    model.train()
    pieces = pieces_of(batch, settings.accumulate)
    sums: dict[str, torch.Tensor] = {}
    for number, piece in enumerate(pieces):
        more_follow = number + 1 < len(pieces)
        stage.announce(more_follow)
        seed_step(settings.seed, step, accelerator.process_index, number)
        with accelerator.no_sync(model) if more_follow else nullcontext():
            with autocast(execution.precision, accelerator.device):
                figures = stage.loss(model, piece)
            (figures["loss"] / len(pieces)).backward()
        for name, value in figures.items():
            sums[name] = sums.get(name, 0) + value.detach()
    return {name: value / len(pieces) for name, value in sums.items()}


def _validate(stage: Stage, history: list[Figures], states: Path, log: Log) -> Figures:
    """The figures of the model, or of its average, which is remembered if it is the best so far."""
    with without_compiling():
        measured = stage.validate(stage.validated.eval())
    if not all(map(math.isfinite, measured.values())):
        refuse(states, int(history[-1]["step"]), f"on held-out data the figures are not finite ({measured})")
    earlier = [figures[stage.criterion] for figures in history if stage.criterion in figures]
    if stage.best is not None and measured[stage.criterion] < min(earlier, default=math.inf):
        stage.best.load_state_dict(stage.validated.state_dict())
    log.log(history[-1]["step"], measured, "held_out")
    log.show(history[-1]["step"], stage.draw, stage.validated)
    return measured


def _readable(figures: dict[str, torch.Tensor], history: list[Figures]) -> dict[str, str]:
    """The figures of this batch, and those last measured on held-out data, for the bar."""
    measured = {
        name: value for name, value in (history[-1] if history else {}).items() if name not in ("step", *figures)
    }
    now = {name: value.item() for name, value in figures.items()}
    return {name: _short(value) for name, value in {**now, **measured}.items()}


def _short(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def finish(run: Run, keep_state: bool = False) -> None:
    """Mark a run as finished, once its model is saved: its training states have served, but for what only they hold."""
    run.finish_with()
    states = sorted((run.folder / "state").glob("step-*"))
    for state in states[:-1] if keep_state else states:
        shutil.rmtree(state, ignore_errors=True)
    if not keep_state:
        shutil.rmtree(run.folder / "state", ignore_errors=True)


def lr_factor(step: int, steps: int, schedule: str = "cosine") -> float:
    """Linear warm-up, then a cosine from 1 to 0; or 1 throughout."""
    if schedule == "constant":
        return 1.0
    warmup = min(WARMUP_STEPS, steps // 10)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def seed_step(seed: int, step: int, rank: int, piece: int) -> None:
    """Make what a step draws, dropout say, follow from (seed, step), the process and the piece of the batch."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank, piece]).generate_state(1, np.uint64)[0] >> 1))
