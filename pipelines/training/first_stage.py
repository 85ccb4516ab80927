"""The part of training that every kind of tokenizer shares, once its objective is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator

from codegrid.pipelines.running.device import ComputeConfig
from codegrid.pipelines.running.processes import shut_down
from codegrid.pipelines.running.run_folder import Run
from codegrid.pipelines.train_tokenizer import TrainTokenizer

from .loop import Trained, finish, train
from .plan import plan_training


def train_to_the_end(
    objective: Any,
    settings: TrainTokenizer,
    compute: ComputeConfig,
    run: Run,
    accelerator: Accelerator,
    found: str,
    save_with_metrics: Callable[[], None],
) -> Trained | None:
    """Train the objective's `tokenizer`, measure it and save it; in a dry run only say what would be done.

    Args:
        found: the data, in words.
        save_with_metrics: measures the trained tokenizer, and saves it again with what it found.

    Returns the finished model; None in a dry run, and in all processes but the first.
    """
    if settings.dry_run:
        plan_training(objective, settings, compute, accelerator, found)
        return None
    history = train(objective, settings, compute, run, accelerator)
    shut_down(accelerator)  # the others need not wait for the rest
    if not accelerator.is_main_process:
        return None
    objective.tokenizer.eval()
    if settings.half:
        objective.tokenizer.round_to_half()
    objective.save(run.folder, history)  # first: measuring may meet an unreadable image
    save_with_metrics()
    return finish(run, keep_state=settings.lr_schedule == "constant")
