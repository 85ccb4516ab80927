"""The training loop of both stages."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from .batches import StepSampler, load_batches
from .run_folder import Run
from .runtime import autocast
from .speed import Speed
from .training_state import Trained, load_state, save_state

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
    average: nn.Module | None = None  # a moving average of the weights, to be kept in place of the last ones
    max_norm: float = math.inf  # of the gradient
    items: str = "images"  # what the data set holds
    num_workers: int = 0


def train(stage: Stage, settings: Any, precision: str, run: Run, accelerator: Accelerator) -> list[Figures]:
    """Train for `settings.steps`, going on from the last saved state. Returns the validated figures.

    Everything random at step t follows from (seed, t), so the state needs no generator.
    """
    is_main = accelerator.is_main_process
    optimizer = torch.optim.Adam(stage.model.parameters(), lr=settings.lr, fused=True)
    trained = Trained({"model": stage.model} | ({"average": stage.average} if stage.average else {}), optimizer)
    start, history = load_state(run.folder / "state", trained)
    steps = StepSampler(
        len(stage.dataset), settings.batch_size, settings.seed, start, settings.steps,
        accelerator.process_index, accelerator.num_processes,
    )  # fmt: skip
    model = accelerator.prepare_model(stage.model)
    if is_main:
        run.start()
    speed = Speed(settings.batch_size, stage.items)
    batches = speed.watch(load_batches(stage.dataset, steps, stage.num_workers))
    with tqdm(total=settings.steps, initial=start, desc=run.folder.name, disable=not is_main) as bar:
        for step, batch in enumerate(batches, start):
            seed_step(settings.seed, step, accelerator.process_index)
            set_lr(optimizer, settings.lr * lr_factor(step, settings.steps, settings.lr_schedule))
            model.train()
            with autocast(precision, accelerator.device):
                figures = stage.loss(model, batch)
            figures["loss"].backward()
            if stage.max_norm < math.inf:
                nn.utils.clip_grad_norm_(stage.model.parameters(), stage.max_norm)
            optimizer.step()
            optimizer.zero_grad()
            if stage.average:
                stage.average.update_parameters(stage.model)
            bar.update()

            done = step + 1
            if is_main and (done % EVERY == 0 or done == settings.steps):
                bar.set_postfix(_readable(figures, history), refresh=False)
            if is_main and (done % max(1, settings.steps // REPORTS) == 0 or done == settings.steps):
                now = speed.read()  # the log's alone: a history must be the same each time
                with speed.pause():
                    measured = stage.validate((stage.average or stage.model).eval())
                history.append({"step": done, **{name: value.item() for name, value in figures.items()}, **measured})
                bar.write("  ".join(f"{name} {_short(value)}" for name, value in {**history[-1], **now}.items()))
            if is_main and done % settings.save_every == 0 and done < settings.steps:
                with speed.pause():
                    save_state(run.folder / "state", done, trained, history)
    return history


def _readable(figures: dict[str, torch.Tensor], history: list[Figures]) -> dict[str, str]:
    """The figures of this batch, and those last measured on held-out data, for the bar."""
    measured = {
        name: value for name, value in (history[-1] if history else {}).items() if name not in ("step", *figures)
    }
    now = {name: value.item() for name, value in figures.items()}
    return {name: _short(value) for name, value in {**now, **measured}.items()}


def _short(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def finish(run: Run) -> None:
    """Mark a run as finished, once its model is saved: its training states have served."""
    run.finish_with()
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


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what a step draws, dropout say, follow from (seed, step) and the process."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))
