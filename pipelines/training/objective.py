"""Objectives of training: the players, their losses, and how they are validated.

The loop in `loop.py` knows nothing of tokenizers or priors. Adversarial training is one objective with two players.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from codegrid.codes import Losses, Moment

from .sharding import in_one_piece, own_share, shard

Metrics = dict[str, float]
Pages = dict[str, torch.Tensor]  # (3, H, W), 0 ... 1, by name


@dataclass
class Player:
    """A network with its own optimizer.

    Args:
        module: the network, on its device.
        make_optimizer: called once with the trainable parameters, after the module is wrapped for several processes.
        lr: peak learning rate. Its schedule begins at `first_step`.
        max_norm: the gradient is clipped to this norm.
        average_decay: decay of a moving average of the weights, which is validated in their place; 0: no average.
        first_step: before this step the player does not move, and its optimizer has no state.
        to_compile: parts of the module to compile if the settings ask for it.
        to_shard: split the module over the processes, if there are several; until then it may be on the CPU.
    """

    module: nn.Module
    make_optimizer: Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer]
    lr: float
    max_norm: float = float("inf")
    average_decay: float = 0.0
    first_step: int = 0
    to_compile: Sequence[nn.Module] = ()
    to_shard: bool = False
    average: AveragedModel | None = field(init=False, default=None)
    best: nn.Module | None = field(init=False, default=None)  # a copy from when the criterion was lowest
    whole: nn.Module | None = field(init=False, default=None)  # if split: a whole copy to validate and to save

    def __post_init__(self) -> None:
        if self.average_decay:
            moves = partial(_move_towards, self.average_decay)
            self.average = AveragedModel(self.module, multi_avg_fn=moves, use_buffers=True)

    @property
    def validated(self) -> nn.Module:
        """The module, or its average; if it is split, the whole copy that `gather` filled."""
        return self.latest if self.whole is None else self.whole

    @property
    def latest(self) -> nn.Module:
        """The module, or its average, split or not."""
        return self.module if self.average is None else self.average.module

    @property
    def kept(self) -> nn.Module:
        """The best module if the objective keeps it, else the last; if it is split, the whole copy."""
        return self.validated if self.best is None or self.whole is not None else self.best

    def modules(self) -> dict[str, nn.Module]:
        """Return everything that training changes, by name."""
        parts = {"model": self.module, "average": self.average, "best": self.best}
        return {name: part for name, part in parts.items() if part is not None}

    def remember(self) -> None:
        """Keep a copy of the module, or of its average, as the best one so far."""
        if self.best is None:
            self.best = deepcopy(self.latest).eval()
        self.best.load_state_dict(self.latest.state_dict())

    def shard(self, device: torch.device, keep_whole: bool) -> None:
        """Split everything that training changes over all processes. One of them keeps a whole copy, on the CPU."""
        self.whole = deepcopy(self.module).to("cpu") if keep_whole else None
        for part in (self.module, None if self.average is None else self.average.module, self.best):
            if part is not None:
                shard(part, device)

    @torch.no_grad()
    def gather(self, part: nn.Module) -> None:
        """Copy a split part into the whole copy. All processes must call this."""
        copy = {} if self.whole is None else self.whole.state_dict()
        for name, tensor in part.state_dict().items():
            value = in_one_piece(tensor)
            if name in copy:
                copy[name].copy_(value)


class Batches(Protocol):
    """A data set that is read in batches."""

    def __len__(self) -> int:
        """Return how many items there are."""

    def batch(self, indices: Any) -> Any:
        """Return the items with these indices: nested tuples or dicts of tensors whose first axis is the batch."""


class Objective(Protocol):
    """The subject of a training run: its players, data, losses and validation.

    `losses` is called for each player in turn, for each piece of a step's batch. It uses other players' modules
    unwrapped, through `players[name].module`, and no gradient reaches their parameters. All players see a piece at the
    same `Moment`, so that random draws such as dropout are the same for each.

    An objective may name steps as `noted`: their figures are logged besides those of every 20th step.
    """

    players: dict[str, Player]
    items: str  # what the data set holds, for example `images`
    num_workers: int
    criterion: str  # the validation metric that decides which model is best, lower is better; empty: none does
    keep_best: bool  # whether to keep the players as they were when the criterion was lowest
    buffers: dict[str, torch.Tensor]  # what `after_step` changes besides the modules, for example an adaptive weight

    @property
    def dataset(self) -> Batches:
        """Return the training data."""

    def losses(self, player: str, wrapped: nn.Module, batch: Any, moment: Moment) -> Losses:
        """Return the losses of a player for a batch; call `wrapped` for the forward pass of its module."""

    def after_step(self, step: int, seed: int) -> None:
        """Update what no optimizer updates, for example codebooks: once per step, after the optimizers."""

    def validate(self) -> dict[str, Any]:
        """Measure each player's `validated`, in eval mode. Returns metrics by name; the numbers go into the history."""

    def draw(self) -> Pages:
        """Return pictures for a tracker, made with each player's `validated`, in eval mode."""

    def save(self, folder: Path, history: list[Metrics]) -> None:
        """Write each player's `validated` as a model folder that records its history up to now."""


@torch.no_grad()
def _move_towards(
    decay: float, averages: list[torch.Tensor], current: list[torch.Tensor], num_averaged: torch.Tensor | int
) -> None:
    """Update averages of weights: they often predict and sample better than the last weights of a noisy run."""
    averages, current = ([own_share(tensor) for tensor in each] for each in (averages, current))
    if not averages[0].is_floating_point():  # counters and masks
        torch._foreach_copy_(averages, current)
        return
    # the decay grows from 0.1, so that a short run does not keep its random start
    decay = min(decay, (1 + int(num_averaged)) / (10 + int(num_averaged)))
    torch._foreach_lerp_(averages, current, 1 - decay)
