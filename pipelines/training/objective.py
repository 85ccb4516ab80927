"""The objective of a stage of training: its players, their losses, and how they are validated.

The loop in `loop.py` knows nothing of tokenizers or priors. An adversarial training is two players of one objective.
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
    """A network with an optimizer of its own.

    Args:
        module: the network, on its device.
        make_optimizer: called once with the parameters that learn, after the module is wrapped for several processes.
        lr: highest learning rate. Its schedule begins at `first_step`.
        max_norm: a longer gradient is cut to it.
        average_decay: of a moving average of the weights, which is validated in their place; 0: there is none.
        first_step: steps before it leave this player as it is, and its optimizer without any state.
        to_compile: parts of the module that are compiled where the settings ask for it.
        to_shard: whether the module is split over several processes, where there are any: it may wait on the CPU then.
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
    best: nn.Module | None = field(init=False, default=None)  # as it was validated when the criterion was lowest
    whole: nn.Module | None = field(init=False, default=None)  # of a split module: a copy to validate and to save

    def __post_init__(self) -> None:
        if self.average_decay:
            moves = partial(_move_towards, self.average_decay)
            self.average = AveragedModel(self.module, multi_avg_fn=moves, use_buffers=True)

    @property
    def validated(self) -> nn.Module:
        """The module, or its average; of a split one, the copy that `gather` filled."""
        return self.latest if self.whole is None else self.whole

    @property
    def latest(self) -> nn.Module:
        """The module, or its average, split or not."""
        return self.module if self.average is None else self.average.module

    @property
    def kept(self) -> nn.Module:
        """The best one, where the objective keeps it, or else the last; of a split one, the copy."""
        return self.validated if self.best is None or self.whole is not None else self.best

    def modules(self) -> dict[str, nn.Module]:
        """Return everything that training moves, by name."""
        parts = {"model": self.module, "average": self.average, "best": self.best}
        return {name: part for name, part in parts.items() if part is not None}

    def remember(self) -> None:
        """Take the module, or its average, for the best one so far."""
        if self.best is None:
            self.best = deepcopy(self.latest).eval()
        self.best.load_state_dict(self.latest.state_dict())

    def shard(self, device: torch.device, keep_whole: bool) -> None:
        """Split everything that training moves over all processes. One of them keeps a whole copy, on the CPU."""
        self.whole = deepcopy(self.module).to("cpu") if keep_whole else None
        for part in (self.module, None if self.average is None else self.average.module, self.best):
            if part is not None:
                shard(part, device)

    @torch.no_grad()
    def gather(self, part: nn.Module) -> None:
        """Make the whole copy one of a split part. All processes must call this."""
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
        """Return the items of some numbers: nested tuples or dicts of tensors whose first axis is the batch."""


class Objective(Protocol):
    """One stage of training.

    `losses` is called for each player in turn, for each piece of a step's batch. Other players' modules are used as
    they are, unwrapped, through `players[name].module`: no gradient reaches their parameters. All players see a piece
    at the same moment: what is drawn at random, dropout for example, is the same for each.
    """

    players: dict[str, Player]
    items: str  # what the data set holds, `images` for example
    num_workers: int
    criterion: str  # the validated metric that tells the best; the lower, the better. Empty: there is none
    keep_best: bool  # whether the players are remembered as they were when the criterion was lowest
    buffers: dict[str, torch.Tensor]  # what `after_step` moves beside the modules, an adaptive weight for example

    @property
    def dataset(self) -> Batches:
        """Return what is learnt."""

    def losses(self, player: str, wrapped: nn.Module, batch: Any, moment: Moment) -> Losses:
        """Return the losses of a player for a batch; the forward pass of its module goes through `wrapped`."""

    def after_step(self, step: int, seed: int) -> None:
        """Move what no optimizer moves, codebooks for example: once a step, after the optimizers."""

    def validate(self) -> dict[str, Any]:
        """Measure `validated` of the players, in eval mode: metrics by name, of which the numbers are remembered."""

    def draw(self) -> Pages:
        """Return pictures for a tracker, of `validated` of the players, in eval mode."""

    def save(self, folder: Path, history: list[Metrics]) -> None:
        """Write `validated` of the players as a model folder that tells its history up to now."""


@torch.no_grad()
def _move_towards(
    decay: float, averages: list[torch.Tensor], current: list[torch.Tensor], num_averaged: torch.Tensor | int
) -> None:
    """Move averages of weights: such a model often predicts and samples better than the last one of a noisy run."""
    averages, current = ([own_share(tensor) for tensor in each] for each in (averages, current))
    if not averages[0].is_floating_point():  # counters and masks
        torch._foreach_copy_(averages, current)
        return
    # the decay grows from 0.1: a short run must not keep its random start
    decay = min(decay, (1 + int(num_averaged)) / (10 + int(num_averaged)))
    torch._foreach_lerp_(averages, current, 1 - decay)
