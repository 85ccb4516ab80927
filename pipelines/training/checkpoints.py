"""The state of a training run on disk: everything that a continued run needs to equal one that never stopped."""

import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from codegrid.errors import InputError
from codegrid.files import write_folder, write_json
from codegrid.pipelines.running.cli import say
from codegrid.tensors import digest_of, read_json, read_tensors, write_tensors

Figures = dict[str, float]

SECONDS = 9.0  # of work that may be lost, with a step and the saving itself below ten
KEPT = 2  # the last states; the older one serves where the newer one is damaged


class Trained(NamedTuple):
    """The things with tensors that a run moves."""

    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer


class States:
    """The training states of a run, in its folder `state`.

    Args:
        folder: where they are.
        run: what tells the run from others: their states are not taken for its own.
        trained: what is saved and loaded.
        every: steps between two saved states; None saves when `SECONDS` have passed.
    """

    def __init__(self, folder: Path, run: str, trained: Trained, every: int | None) -> None:
        self.folder, self.run, self.trained, self.every = folder, run, trained, every
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether the state after `step` steps is to be saved."""
        return time.monotonic() - self._last > SECONDS if self.every is None else step % self.every == 0

    def save(self, step: int, history: list[Figures]) -> None:
        """Write the state after `step` steps, and drop all but the last two."""
        modules, optimizer = self.trained.modules.items(), self.trained.optimizer.state_dict()["state"]
        tensors = {f"{name}.{key}": value for name, module in modules for key, value in module.state_dict().items()}
        for parameter, values in optimizer.items():
            tensors |= {f"optimizer.{parameter}.{key}": value for key, value in values.items()}
        with write_folder(self.folder / f"step-{step:08d}", index="state.json") as staging:
            checksum = write_tensors(staging / "state.safetensors", tensors)
            fields = {"run": self.run, "step": step, "history": history, "tensors": checksum}
            write_json(staging / "state.json", {**fields, "sha256": digest_of(fields)})
        # what lies beyond this step was passed over as damaged
        kept = [path for path in self._saved() if int(path.name.removeprefix("step-")) <= step][-KEPT:]
        for other in set(self.folder.iterdir()) - set(kept):  # older ones, and what a killed run left half-written
            shutil.rmtree(other, ignore_errors=True)
        self._last = time.monotonic()

    def load(self) -> tuple[int, list[Figures]]:
        """Load the newest state that is sound: its step and history. Step 0 and no history where there is none."""
        for saved in reversed(self._saved()):
            try:
                return self._load(saved)
            except (InputError, OSError) as error:
                say(f"skipping a damaged training state: {error}")
        if self._saved():
            say("no sound training state is left: starting from the first step")
        return 0, []

    def _load(self, saved: Path) -> tuple[int, list[Figures]]:
        fields = read_json(saved / "state.json")
        if fields.pop("sha256", None) != digest_of(fields):
            raise InputError(f"{saved / 'state.json'} is not what was written")
        if fields.get("run") != self.run or saved.name != f"step-{fields.get('step'):08}":
            raise InputError(f"{saved} is the state of another run")
        if not isinstance(fields.get("history"), list):
            raise InputError(f"{saved / 'state.json'} tells no history")
        tensors = read_tensors(saved / "state.safetensors", str(fields.get("tensors")))
        if not self._fits(tensors):
            raise InputError(f"{saved} does not hold what this run trains")
        for name, module in self.trained.modules.items():
            module.load_state_dict(_below(tensors, name))
        _load_optimizer(self.trained.optimizer, _below(tensors, "optimizer"))
        return fields["step"], fields["history"]

    def _fits(self, tensors: dict[str, torch.Tensor]) -> bool:
        """Whether everything is there, in its shape: half-loaded weights would be worse than none."""
        modules = self.trained.modules.items()
        needed = {f"{name}.{key}": value for name, module in modules for key, value in module.state_dict().items()}
        for number, parameter in enumerate(_parameters(self.trained.optimizer)):
            moments = {f"optimizer.{number}.{key}": parameter for key in ("exp_avg", "exp_avg_sq")}
            needed |= {**moments, f"optimizer.{number}.step": torch.tensor(0.0)}
        return {key: value.shape for key, value in tensors.items()} == {
            key: value.shape for key, value in needed.items()
        }

    def _saved(self) -> list[Path]:
        """Whole states, the newest last."""
        return sorted(path.parent for path in self.folder.glob("step-" + "[0-9]" * 8 + "/state.json"))


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    parameters = _parameters(optimizer)
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        number, _, entry = key.partition(".")
        parameter = parameters[int(number)]
        if value.shape == parameter.shape:
            # in the parameter's own memory format: fused optimizers walk through both side by side
            value = torch.empty_like(parameter).copy_(value)
        state.setdefault(int(number), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _below(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
