"""The parts of a training step: losses and gradients of each player, optimizers, averages, validation."""

import inspect
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from codegrid.codes import Moment
from codegrid.data.loading import StepSampler, check_shares, load_batches, pieces_of
from codegrid.noise import Noise, torch_rng
from codegrid.pipelines.running.device import ComputeConfig, autocast, without_compiling
from codegrid.pipelines.running.processes import broadcast_from_main
from codegrid.pipelines.running.settings import Training
from codegrid.protocols import AdamSettings

from .checkpoints import Trainable
from .objective import Metrics, Objective, Player
from .sharding import in_one_piece

Figures = dict[str, torch.Tensor]  # (), by name

WARMUP_STEPS = 500  # at most a tenth of all
REPORTS = 10  # validations in a run
PLAIN_ADAM = AdamSettings()


class Acting(NamedTuple):
    """A player, ready for training."""

    player: Player
    wrapped: nn.Module  # its module, wrapped for several processes
    optimizer: torch.optim.Optimizer


class Trainer:
    """The players of an objective, with a method for each part of a training step."""

    def __init__(
        self, objective: Objective, settings: Training, compute: ComputeConfig, accelerator: Accelerator
    ) -> None:
        check_shares(settings.batch_size, accelerator.num_processes, settings.accumulate)
        self.objective, self.settings, self.compute, self.accelerator = objective, settings, compute, accelerator
        several = accelerator.num_processes > 1
        self.split = [player for player in objective.players.values() if several and player.to_shard]
        self.is_sharded = bool(self.split)
        self.team = {name: self._prepare(player) for name, player in objective.players.items()}

    def _prepare(self, player: Player) -> Acting:
        if self.objective.keep_best:
            player.remember()
        for part in player.to_compile if self.compute.compiled else ():
            part.compile()
        if self.is_sharded and player.to_shard:
            player.shard(self.accelerator.device, keep_whole=self.accelerator.is_main_process)
            wrapped = player.module
        else:
            wrapped = self.accelerator.prepare_model(player.module, device_placement=False)  # it is there already
        return Acting(player, wrapped, player.make_optimizer(_learning(wrapped)))

    def trainable(self) -> Trainable:
        """Return everything that training changes."""
        return Trainable(
            {
                f"{name}.{part}": module
                for name, acting in self.team.items()
                for part, module in acting.player.modules().items()
            },
            {name: acting.optimizer for name, acting in self.team.items()},
            self.objective.buffers,
        )

    def batches(self, start: int) -> Iterator[Any]:
        """Return this process's share of the batch of each step from `start` on."""
        settings, accelerator = self.settings, self.accelerator
        steps = StepSampler(
            len(self.objective.dataset), settings.batch_size, settings.seed, start, settings.steps,
            accelerator.process_index, accelerator.num_processes, getattr(self.objective.dataset, "order", None),
        )  # fmt: skip
        return load_batches(self.objective.dataset, steps, self.objective.num_workers)

    def playing(self, step: int) -> dict[str, Acting]:
        """Return the players that have begun by this step."""
        return {name: acting for name, acting in self.team.items() if step >= acting.player.first_step}

    def find_gradients(self, batch: Any, step: int) -> Figures:
        """Run forward and backward, piece by piece and player by player. Returns the means of the pieces' figures."""
        pieces = pieces_of(batch, self.settings.accumulate)
        sums: Figures = {}
        for number, piece in enumerate(pieces):
            moment = self._moment(step, number)
            for name, acting in self.playing(step).items():
                acting.wrapped.train()
                is_last = number + 1 == len(pieces)
                with self._others_frozen(name), nullcontext() if is_last else self.accelerator.no_sync(acting.wrapped):
                    # so that torch's own random draws, such as dropout, are the same for all players
                    seed_torch(self.settings.seed, "step", step, self.accelerator.process_index, number)
                    with autocast(self.compute.precision, self.accelerator.device):
                        losses = self.objective.losses(name, acting.wrapped, piece, moment)
                    (losses.total / len(pieces)).backward()
                for key, value in {"loss": losses.total, **losses.terms, **losses.figures}.items():
                    key = self._named(name, key)
                    sums[key] = sums.get(key, 0) + value.detach()
        return {key: value / len(pieces) for key, value in sums.items()}

    def limit_gradients(self, step: int) -> Figures:
        """Clip each player's gradient to its `max_norm`. Returns the norms before clipping."""
        return {
            self._named(name, "gradient"): limit_gradient(acting.player.module, acting.player.max_norm)
            for name, acting in self.playing(step).items()
        }

    def update(self, step: int) -> None:
        """Step the optimizers, then update what no optimizer updates, then the averages."""
        for player, _, optimizer in self.playing(step).values():
            since, steps = step - player.first_step, self.settings.steps - player.first_step
            set_lr(optimizer, player.lr * lr_factor(since, steps, self.settings.lr_schedule))
            optimizer.step()
            optimizer.zero_grad()
        self.objective.after_step(step, self.settings.seed)
        for player, _, _ in self.playing(step).values():
            if player.average is not None:
                player.average.update_parameters(player.module)

    def validates(self, done: int) -> bool:
        """Return whether to validate after `done` steps."""
        return done % (self.settings.validate_every or max(1, self.settings.steps // REPORTS)) == 0

    def validate(self) -> Metrics:
        """Validate the players, or their averages. Returns the metrics that are numbers."""
        for player in self.objective.players.values():
            player.validated.eval()
        with without_compiling():
            measured = self.objective.validate()
        return {name: value for name, value in measured.items() if isinstance(value, int | float)}

    @contextmanager
    def in_one_piece(self) -> Iterator[None]:
        """Gather split players, so that the first process can validate and save them. All processes must call this."""
        for player in self.split:
            self._gather(player, player.latest)
        yield
        for player in self.split:
            if player.whole is not None:
                player.whole.to("cpu")  # training needs the GPU memory

    def gather_kept(self) -> None:
        """Gather `kept` of split players on the first process, once training is over. All processes must call this."""
        for player in self.split:
            self._gather(player, player.latest if player.best is None else player.best)

    def _gather(self, player: Player, part: nn.Module) -> None:
        """Copy a part of a split player into its whole copy, and move that to the device."""
        player.gather(part)
        if player.whole is not None:
            player.whole.to(self.accelerator.device)

    def remember_best(self, measured: Metrics, history: list[Metrics]) -> bool:
        """Return whether the players, or their averages, are the best so far; with `keep_best`, remember them.

        The first process measures; each process remembers its share of split players.
        """
        criterion = self.objective.criterion
        before = min((row[criterion] for row in history if criterion in row), default=math.inf)
        is_best = measured.get(criterion, math.inf) < before
        if self.is_sharded:
            is_best = broadcast_from_main(self.accelerator, lambda: is_best)
        if is_best and self.objective.keep_best:
            for player in self.objective.players.values():
                player.remember()
        return is_best

    def learning_rates(self, done: int) -> Metrics:
        """Return the learning rate of each player that has moved by the end of `done` steps."""
        playing = self.playing(done - 1).items()
        return {self._named(name, "lr"): each.optimizer.param_groups[0]["lr"] for name, each in playing}

    def _moment(self, step: int, piece: int) -> Moment:
        """Return the moment of a piece; its noise depends on its samples' numbers in the step's whole batch."""
        settings, accelerator = self.settings, self.accelerator
        share = settings.batch_size // accelerator.num_processes
        count = share // settings.accumulate
        first = accelerator.process_index * share + piece * count
        return Moment(
            step, settings.steps, Noise(settings.seed, first, count, accelerator.device, ("training", "step", step))
        )

    @contextmanager
    def _others_frozen(self, name: str) -> Iterator[None]:
        """Freeze the other players, so that a player's losses can use them without moving them."""
        others = [part for other, acting in self.team.items() if other != name for part in _learning(acting.wrapped)]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def _named(self, player: str, figure: str) -> str:
        """Name a figure of a player: those of the first one keep their names, as if it were alone."""
        return figure if player == next(iter(self.team)) else f"{player}_{figure}"


def limit_gradient(module: nn.Module, max_norm: float) -> torch.Tensor:
    """Clip the gradient to `max_norm`, and return its norm () before clipping."""
    if max_norm < math.inf:
        return in_one_piece(nn.utils.clip_grad_norm_(module.parameters(), max_norm))
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return in_one_piece(nn.utils.get_total_norm(gradients))


def lr_factor(step: int, steps: int, schedule: str = "cosine") -> float:
    """Return the factor of the learning rate: a linear warm-up, then a cosine from 1 to 0; or 1 throughout."""
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


class UncompiledAdam(torch.optim.AdamW):
    """AdamW without the wrappers that keep it out of compiled code: they import torch's compiler, which takes 2 s."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)


def fused_adam(
    parameters: Iterable[torch.Tensor], settings: AdamSettings = PLAIN_ADAM, module: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Return Adam over all parameters at once; the loop sets its learning rate.

    With weight decay, the weights of the linear layers and convolutions of `module` decay; norms, biases and
    embeddings do not.
    """
    betas, decay = settings
    if not decay or module is None:
        return UncompiledAdam(parameters, betas=betas, weight_decay=0.0, fused=True)
    layers = (part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d))
    decaying, groups = {id(layer.weight) for layer in layers}, {decay: list[torch.Tensor](), 0.0: list[torch.Tensor]()}
    for parameter in parameters:
        groups[decay if id(parameter) in decaying else 0.0].append(parameter)
    return UncompiledAdam(
        [{"params": group, "weight_decay": share} for share, group in groups.items()], betas=betas, fused=True
    )


def seed_torch(seed: int, *purpose: str | int) -> None:
    """Seed torch's global generator, which initial weights and dropout use."""
    # without a GPU, `torch.manual_seed` would take a third of a millisecond to note who asked for its seed
    manual_seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
    manual_seed(torch_rng(seed, *purpose).initial_seed())


def _learning(module: nn.Module) -> list[torch.Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
