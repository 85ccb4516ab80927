"""Training states on disk: all that a continued run needs to end exactly like one that never stopped."""

import re
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from codegrid.errors import InputError, reason_of
from codegrid.files import remove_folder, write_folder, write_json
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.processes import broadcast_from_main, describe_machine
from codegrid.tensors import check_finite, digest_of, read_json, read_tensors, write_tensors

from .objective import Metrics
from .optimizer_state import OptimizerState, Tensors
from .sharding import deal_out, in_one_piece

STATES = "state"  # the folder, below the output folder
FILES = ("state.json", "state.safetensors")  # of a state; it is complete once the first one exists
NAME = re.compile(r"step-(\d{8,})")
SECONDS = 9.0  # of work that may be lost; with a step and the saving itself, under ten
ASKED = 20  # steps between two times that processes ask each other whether a save is due
KEPT = 2  # states kept; the older one is used if the newer one is damaged


class Trainable(NamedTuple):
    """Everything that training changes, by name."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    buffers: Tensors


class Checkpoints:
    """The training states of a run, in its folder `state`. Anything else there is neither read nor removed.

    Args:
        run: identity of the run; states with another identity are not used.
        every: steps between two saved states; None saves when `SECONDS` have passed.
        shared: the processes that hold the weights, if these are sharded: all call every method alike, and the first
            one writes and reads.
    """

    def __init__(
        self, folder: Path, run: str, trainable: Trainable, every: int | None, shared: Accelerator | None = None
    ) -> None:
        self.folder, self.run, self.trainable, self.every, self.shared = folder, run, trainable, every, shared
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Return whether to save the state after `step` steps."""
        if self.every is not None:
            return step % self.every == 0
        is_late = time.monotonic() - self._last > SECONDS
        if self.shared is None:
            return is_late
        return step % ASKED == 0 and broadcast_from_main(self.shared, lambda: is_late)

    def save(self, step: int, history: list[Metrics]) -> None:
        """Write the state after `step` steps, and remove all but the last two."""
        tensors = self._held()
        numbers = {}
        for name, optimizer in self.trainable.optimizers.items():
            held = OptimizerState.of(optimizer)
            tensors |= _under(f"{name}.optimizer", held.tensors)
            numbers[name] = held.numbers
        if self.shared is not None:
            tensors = _gather(tensors, self.shared.is_main_process)
        if self._writes:
            self._write(step, history, tensors, numbers)
        self._last = time.monotonic()

    def _write(self, step: int, history: list[Metrics], tensors: Tensors, numbers: dict[str, Any]) -> None:
        with write_folder(self.folder / f"step-{step:08d}", index="state.json") as staging:
            checksum = write_tensors(staging / "state.safetensors", tensors)
            fields = {"run": self.run, "step": step, "history": history, "optimizers": numbers, "tensors": checksum}
            fields["machine"] = self._machine()
            write_json(staging / "state.json", {**fields, "sha256": digest_of(fields)})
        # states beyond this step were skipped as damaged
        drop_states(self.folder, but=[path for path in saved_states(self.folder) if _step_of(path) <= step][-KEPT:])

    @property
    def _writes(self) -> bool:
        return self.shared is None or self.shared.is_main_process

    def load(self) -> tuple[int, list[Metrics]]:
        """Load the newest undamaged state. Returns its step and history; step 0 and no history if there is none."""
        found = self._newest() if self._writes else None
        if self.shared is not None:
            outline = broadcast_from_main(self.shared, lambda: None if found is None else found.outline())
            found = found or outline
        if found is None:
            return 0, []
        self._take_over(found)
        now = self._machine()
        if found.machine not in (None, now):
            print_once(
                f"continuing with {now}, begun with {found.machine}: the last digits can differ from an unbroken run's"
            )
        return found.step, found.history

    def _newest(self) -> "State | None":
        states = saved_states(self.folder)
        for saved in reversed(states):
            try:
                return self._read(saved)
            except (InputError, OSError) as error:
                print_once(f"skipping a damaged training state: {error}")
        if states:
            print_once("no undamaged training state is left: starting from the first step")
        return None

    def _read(self, saved: Path) -> "State":
        fields = read_json(saved / "state.json")
        if fields.pop("sha256", None) != digest_of(fields):
            raise InputError(f"{saved / 'state.json'} was changed after it was written")
        if fields.get("run") != self.run or fields.get("step") != _step_of(saved):
            raise InputError(f"{saved} is the state of another run")
        if not _is_history(fields.get("history"), fields["step"]) or not isinstance(fields.get("optimizers"), dict):
            raise InputError(f"{saved / 'state.json'} is not a training state")
        tensors = read_tensors(saved / "state.safetensors", str(fields.get("tensors")))
        check_finite(saved / "state.safetensors", tensors)
        # check everything first: half-loaded weights would be worse than none
        states = self._fitting(saved, tensors, fields["optimizers"])
        return State(fields["step"], fields["history"], fields.get("machine"), tensors, states)

    def _take_over(self, state: "State") -> None:
        """Load a state into the modules, buffers and optimizers."""
        tensors, optimizers = state.tensors, state.optimizers
        if self.shared is not None:
            device, held = self.shared.device, self._held()
            tensors = {name: deal_out(value, held[name], device) for name, value in tensors.items()}
            optimizers = {
                name: optimizers[name].dealt_out(optimizer, device)
                for name, optimizer in self.trainable.optimizers.items()
            }
        for name, module in self.trainable.modules.items():
            module.load_state_dict(_take(tensors, name))
        for name, buffer in self.trainable.buffers.items():
            buffer.copy_(tensors[f"buffers.{name}"])
        for name, optimizer in self.trainable.optimizers.items():
            optimizers[name].load_into(optimizer)

    def _fitting(self, saved: Path, tensors: Tensors, numbers: dict[str, Any]) -> dict[str, OptimizerState]:
        """Move the optimizers' states out of the tensors of a file.

        Raises `InputError` if they, or the remaining tensors, do not fit this run.
        """
        states = {
            name: OptimizerState(_take(tensors, f"{name}.optimizer"), numbers.get(name))
            for name in self.trainable.optimizers
        }
        try:
            left, ours = ({name: value.shape for name, value in each.items()} for each in (tensors, self._held()))
            fit = left == ours and numbers.keys() == states.keys()
            fit = fit and all(states[name].fits(each) for name, each in self.trainable.optimizers.items())
        except Exception as error:  # anyone can compute a digest, so values can be wrong in any way
            raise InputError(f"{saved} is not a training state ({reason_of(error)})") from error
        if not fit:
            raise InputError(f"{saved} does not fit what this run trains")
        return states

    def _held(self) -> Tensors:
        """Return the tensors of modules and buffers, by their names on disk."""
        tensors = _under("buffers", self.trainable.buffers)
        for name, module in self.trainable.modules.items():
            tensors |= _under(name, module.state_dict())
        return tensors

    def _machine(self) -> str:
        return describe_machine(next(iter(self._held().values())).device)


def saved_states(folder: Path) -> list[Path]:
    """Return the complete states in a folder, the newest last."""
    return sorted((path for path in _own(folder) if (path / FILES[0]).exists()), key=_step_of)


def drop_states(folder: Path, but: Collection[Path] = ()) -> None:
    """Remove all states in a folder except the given ones, and any that a killed run left half-written."""
    for path in _own(folder):
        if path not in but:
            remove_folder(path, FILES)
    if not but:
        remove_folder(folder, ())


def _own(folder: Path) -> list[Path]:
    """Return the folders of states, complete or not, but no links: those are not ours."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if NAME.fullmatch(path.name) and not path.is_symlink()]


def _step_of(state: Path) -> int:
    """Return the step that a state's folder is named for."""
    return int(state.name.removeprefix("step-"))


class State(NamedTuple):
    """A training state that was checked to fit its run."""

    step: int
    history: list[Metrics]
    machine: str | None
    tensors: Tensors  # of modules and buffers
    optimizers: dict[str, OptimizerState]

    def outline(self) -> "State":
        """Return the state with the shapes of its tensors only, on the meta device."""
        optimizers = {name: each._replace(tensors=_outlines(each.tensors)) for name, each in self.optimizers.items()}
        return self._replace(tensors=_outlines(self.tensors), optimizers=optimizers)


def _outlines(tensors: Tensors) -> Tensors:
    return {name: tensor.to("meta") for name, tensor in tensors.items()}


def _gather(tensors: Tensors, keep: bool) -> Tensors:
    """Return sharded tensors as whole ones on the CPU, or nothing unless `keep`. All processes must call this."""
    whole = {}
    for name, tensor in tensors.items():
        value = in_one_piece(tensor.detach())  # one at a time: a GPU has no room for all
        if keep:
            whole[name] = value.cpu()
    return whole


def _is_history(value: object, step: int) -> bool:
    """Return whether a JSON value is a list of metrics of steps up to this one."""
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
    """Remove the tensors whose names begin with `name.`, and return them without that prefix."""
    return {key.removeprefix(f"{name}."): tensors.pop(key) for key in list(tensors) if key.startswith(f"{name}.")}
