"""A dry run of training: the size of the model, the number of epochs, and the memory that training needs."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from codegrid.budget import in_words
from codegrid.codes import Moment
from codegrid.data.loading import check_shares, load_batches
from codegrid.noise import Noise
from codegrid.pipelines.running.cli import print_plan
from codegrid.pipelines.running.device import ComputeConfig, autocast
from codegrid.pipelines.running.processes import shut_down
from codegrid.pipelines.running.settings import Training

from .objective import Objective, Player

COPIES = 4  # for each weight: itself, its gradient, and two numbers of Adam
TRIED = 8  # items in the trial batch


def plan_training(
    objective: Objective, settings: Training, compute: ComputeConfig, accelerator: Accelerator, found: str
) -> None:
    """Print what training would do with the data that was found, and end the run of all processes."""
    check_shares(settings.batch_size, accelerator.num_processes, settings.accumulate)
    counts = {
        name: sum(parameter.numel() for parameter in player.module.parameters())
        for name, player in objective.players.items()
    }
    weights = counts.pop(next(iter(counts)))
    others = "".join(f"; {name}, {count:,} weights" for name, count in counts.items())
    epochs = settings.steps * settings.batch_size / len(objective.dataset)
    model, step = expected_memory(objective, settings, compute, accelerator)
    print_plan(
        f"data: {found}",
        f"model: {settings.model}, {weights:,} weights{others}",  # type: ignore[attr-defined]
        f"steps: {settings.steps:,} of {settings.batch_size:,} {objective.items}, {epochs:,.1f} epochs",
        f"memory: about {in_words(model + step)} on {accelerator.device}, besides PyTorch and the data:\n"
        f"  {in_words(model)} for the model, {in_words(step)} for a step",
    )
    shut_down(accelerator)


def expected_memory(
    objective: Objective, settings: Training, compute: ComputeConfig, accelerator: Accelerator
) -> tuple[int, int]:
    """Return the bytes that each process needs for weights and optimizers, and for what a step keeps for its backward.

    The second number is measured on a few items and scaled to the batch, at the last step: all players have begun.
    """
    model = sum(
        (COPIES + (player.average is not None) + objective.keep_best)
        * _bytes_of(player.module)
        // (accelerator.num_processes if player.to_shard else 1)
        for player in objective.players.values()
    )
    count = min(TRIED, len(objective.dataset))
    (batch,) = load_batches(objective.dataset, [list(range(count))])
    moment = Moment(
        settings.steps - 1, settings.steps, Noise(settings.seed, 0, count, accelerator.device, ("dry run",))
    )
    step = max(
        _kept_bytes(objective, name, player, batch, moment, autocast(compute.precision, accelerator.device))
        for name, player in objective.players.items()
    )
    at_once = settings.batch_size // accelerator.num_processes // settings.accumulate
    return model, step * at_once // count


def _kept_bytes(
    objective: Objective, name: str, player: Player, batch: object, moment: Moment, precision: torch.autocast
) -> int:
    """Run a forward pass, and return the bytes of everything that the backward pass would need."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in player.module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    player.module.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision:
        objective.losses(name, player.module, batch, moment)
    return sum(kept[place].untyped_storage().nbytes() for place in kept.keys() - weights)


def _bytes_of(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
