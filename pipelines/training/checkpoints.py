"""The state of a training run on disk: everything that a continued run needs to equal one that never stopped."""

import re
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from codegrid.errors import InputError, reason_of
from codegrid.files import remove_folder, write_folder, write_json
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.processes import describe_machine
from codegrid.tensors import check_finite, digest_of, read_json, read_tensors, write_tensors

from .objective import Metrics

STATES = "state"  # the folder, below the output folder
FILES = ("state.json", "state.safetensors")  # of a state, the one that makes it whole first
NAME = re.compile(r"step-(\d{8,})")
SECONDS = 9.0  # of work that may be lost, with a step and the saving itself below ten
KEPT = 2  # the last states; the older one serves where the newer one is damaged
Tensors = dict[str, torch.Tensor]


class Trainable(NamedTuple):
    """Everything that a run moves, by name."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    buffers: Tensors


class Checkpoints:
    """The training states of a run, in its folder `state`. What others put there is neither read nor removed.

    Args:
        run: what tells the run from others: their states are not taken for its own.
        every: steps between two saved states; None saves when `SECONDS` have passed.
    """

    def __init__(self, folder: Path, run: str, trainable: Trainable, every: int | None) -> None:
        self.folder, self.run, self.trainable, self.every = folder, run, trainable, every
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether the state after `step` steps is to be saved."""
        return time.monotonic() - self._last > SECONDS if self.every is None else step % self.every == 0

    def save(self, step: int, history: list[Metrics]) -> None:
        """Write the state after `step` steps, and drop all but the last two."""
        tensors = self._held()
        numbers = {}
        for name, optimizer in self.trainable.optimizers.items():
            held = OptimizerState.of(optimizer)
            tensors |= _under(f"{name}.optimizer", held.tensors)
            numbers[name] = held.numbers
        with write_folder(self.folder / f"step-{step:08d}", index="state.json") as staging:
            checksum = write_tensors(staging / "state.safetensors", tensors)
            fields = {"run": self.run, "step": step, "history": history, "optimizers": numbers, "tensors": checksum}
            fields["machine"] = self._machine()
            write_json(staging / "state.json", {**fields, "sha256": digest_of(fields)})
        # what lies beyond this step was passed over as damaged
        drop_states(self.folder, but=[path for path in saved_states(self.folder) if _step_of(path) <= step][-KEPT:])
        self._last = time.monotonic()

    def load(self) -> tuple[int, list[Metrics]]:
        """Load the newest state that is sound: its step and history. Step 0 and no history where there is none."""
        states = saved_states(self.folder)
        for saved in reversed(states):
            try:
                return self._load(saved)
            except (InputError, OSError) as error:
                print_once(f"skipping a damaged training state: {error}")
        if states:
            print_once("no sound training state is left: starting from the first step")
        return 0, []

    def _load(self, saved: Path) -> tuple[int, list[Metrics]]:
        fields = read_json(saved / "state.json")
        if fields.pop("sha256", None) != digest_of(fields):
            raise InputError(f"{saved / 'state.json'} is not what was written")
        if fields.get("run") != self.run or fields.get("step") != _step_of(saved):
            raise InputError(f"{saved} is the state of another run")
        if not _is_history(fields.get("history"), fields["step"]) or not isinstance(fields.get("optimizers"), dict):
            raise InputError(f"{saved / 'state.json'} is not a training state")
        tensors = read_tensors(saved / "state.safetensors", str(fields.get("tensors")))
        check_finite(saved / "state.safetensors", tensors)
        # all of it first: half-loaded weights would be worse than none
        states = self._fitting(saved, tensors, fields["optimizers"])
        for name, module in self.trainable.modules.items():
            module.load_state_dict(_take(tensors, name))
        for name, buffer in self.trainable.buffers.items():
            buffer.copy_(tensors[f"buffers.{name}"])
        for name, optimizer in self.trainable.optimizers.items():
            states[name].load_into(optimizer)
        now = self._machine()
        if fields.get("machine") not in (None, now):
            was = fields["machine"]
            print_once(f"going on with {now}, begun with {was}: its last digits can differ from those of a whole run")
        return fields["step"], fields["history"]

    def _fitting(self, saved: Path, tensors: Tensors, numbers: dict[str, Any]) -> dict[str, "OptimizerState"]:
        """Take the optimizers' states out of the tensors of a file.

        Raises `InputError` where they, or what is left, cannot be of this run.
        """
        states = {
            name: OptimizerState(_take(tensors, f"{name}.optimizer"), numbers.get(name))
            for name in self.trainable.optimizers
        }
        try:
            left, ours = ({name: value.shape for name, value in each.items()} for each in (tensors, self._held()))
            fit = left == ours and numbers.keys() == states.keys()
            fit = fit and all(states[name].fits(each) for name, each in self.trainable.optimizers.items())
        except Exception as error:  # anyone can compute a digest: values can be wrong in any way
            raise InputError(f"{saved} is not a training state ({reason_of(error)})") from error
        if not fit:
            raise InputError(f"{saved} does not hold what this run trains")
        return states

    def _held(self) -> Tensors:
        """Return the tensors of modules and buffers, under the names they have on disk."""
        tensors = _under("buffers", self.trainable.buffers)
        for name, module in self.trainable.modules.items():
            tensors |= _under(name, module.state_dict())
        return tensors

    def _machine(self) -> str:
        return describe_machine(next(iter(self._held().values())).device)


def saved_states(folder: Path) -> list[Path]:
    """Return the whole states in a folder, the newest last."""
    return sorted((path for path in _own(folder) if (path / FILES[0]).exists()), key=_step_of)


def drop_states(folder: Path, but: Collection[Path] = ()) -> None:
    """Remove all states in a folder, and those that a killed run left half-written, but the given ones."""
    for path in _own(folder):
        if path not in but:
            remove_folder(path, FILES)
    if not but:
        remove_folder(folder, ())


def _own(folder: Path) -> list[Path]:
    """Return the folders of states, whole or not; links are others'."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if NAME.fullmatch(path.name) and not path.is_symlink()]


def _step_of(state: Path) -> int:
    """Return the step that a state's folder is named for."""
    return int(state.name.removeprefix("step-"))


class OptimizerState(NamedTuple):
    """The state of an optimizer, whichever it is: its tensors, and its numbers as JSON values."""

    tensors: Tensors  # `number of the parameter.name`
    numbers: Any  # {"state": {number of the parameter: {name: value}}, "groups": [{name: value}]}

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> "OptimizerState":
        """Return what an optimizer holds now: nothing for parameters that have not moved yet."""
        held = optimizer.state_dict()
        tensors: Tensors = {}
        numbers: dict[str, dict[str, Any]] = {}
        for number, values in held["state"].items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{number}.{name}"] = value
                else:
                    numbers.setdefault(str(number), {})[name] = value
        # a bool says how it computes, and may differ on another machine
        groups = [
            {name: value for name, value in group.items() if type(value) in (int, float)}
            for group in held["param_groups"]
        ]
        return cls(tensors, {"state": numbers, "groups": groups})

    def fits(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether this can be the state of an optimizer of these parameters.

        Each tensor is a scalar or has its parameter's shape. In each group all parameters hold the same, or nothing:
        a parameter that never had a gradient holds nothing.
        """
        if not isinstance(self.numbers, dict) or self.numbers.keys() != {"state", "groups"}:
            return False
        groups = optimizer.state_dict()["param_groups"]
        if len(self.numbers["groups"]) != len(groups):
            return False
        held = [*self.numbers["groups"], *self.numbers["state"].values()]
        if not all(isinstance(value, int | float | None) for values in held for value in values.values()):
            return False
        parameters, names = _parameters(optimizer), self._names()
        for group in groups:
            if len({frozenset(names.pop(number)) for number in group["params"] if number in names}) > 1:
                return False
        return not names and all(
            value.shape in ((), parameters[int(key.partition(".")[0])].shape) for key, value in self.tensors.items()
        )

    def load_into(self, optimizer: torch.optim.Optimizer) -> None:
        """Give an optimizer this state."""
        parameters = _parameters(optimizer)
        state: dict[int, dict[str, Any]] = {int(number): dict(held) for number, held in self.numbers["state"].items()}
        for key, value in self.tensors.items():
            number, _, name = key.partition(".")
            parameter = parameters[int(number)]
            if value.shape == parameter.shape and value.ndim:
                # in the parameter's own memory format: fused optimizers walk through both side by side
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            state.setdefault(int(number), {})[name] = value
        groups = optimizer.state_dict()["param_groups"]
        for group, numbers in zip(groups, self.numbers["groups"], strict=True):
            group |= {name: value for name, value in numbers.items() if name in group}
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _names(self) -> dict[int, set[str]]:
        """Return what each parameter, by number, holds."""
        names = {int(number): set(held) for number, held in self.numbers["state"].items()}
        for key in self.tensors:
            number, _, name = key.partition(".")
            names.setdefault(int(number), set()).add(name)
        return names


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _is_history(value: object, step: int) -> bool:
    """Whether a JSON value is the metrics over the steps up to this one."""
    return isinstance(value, list) and all(
        isinstance(metrics, dict)
        and all(isinstance(value, int | float) for value in metrics.values())
        and type(metrics.get("step")) is int
        and metrics["step"] <= step
        for metrics in value
    )


def _under(name: str, tensors: Tensors) -> Tensors:
    return {f"{name}.{key}": value for key, value in tensors.items()}


def _take(tensors: Tensors, name: str) -> Tensors:
    """Take the tensors below a name out of all of them."""
    return {key.removeprefix(f"{name}."): tensors.pop(key) for key in list(tensors) if key.startswith(f"{name}.")}
