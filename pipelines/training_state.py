"""The state of a training run on disk: everything that a continued run needs to equal one that never stopped."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from storage.atomic import write_folder, write_json
from storage.errors import InputError
from storage.tensors import digest_of, read_json, read_tensors, write_tensors

KEPT = 2  # the last states; the older one serves where the newer one is damaged


class Trained(NamedTuple):
    """The things with tensors that a run moves."""

    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer


def save_state(folder: Path, step: int, trained: Trained, history: list[dict[str, float]]) -> None:
    """Write the state after `step` steps, and drop all but the last two."""
    tensors = {
        f"{name}.{key}": value for name, module in trained.modules.items() for key, value in module.state_dict().items()
    }
    for parameter, values in trained.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{parameter}.{key}": value for key, value in values.items()}
    with write_folder(folder / f"step-{step:08d}", index="state.json") as staging:
        checksum = write_tensors(staging / "state.safetensors", tensors)
        fields = {"step": step, "history": history, "tensors": checksum}
        write_json(staging / "state.json", {**fields, "sha256": digest_of(fields)})
    for old in _saved(folder)[:-KEPT]:
        shutil.rmtree(old)


def load_state(folder: Path, trained: Trained) -> tuple[int, list[dict[str, float]]]:
    """Load the newest state that is sound: its step and history. Step 0 and no history where there is none."""
    for saved in reversed(_saved(folder)):
        try:
            fields = read_json(saved / "state.json")
            if fields.pop("sha256", None) != digest_of(fields):
                raise InputError(f"{saved / 'state.json'} is damaged")
            tensors = read_tensors(saved / "state.safetensors", fields["tensors"])
        except (InputError, OSError) as error:
            print(f"skipping a damaged training state: {error}")
            continue
        for name, module in trained.modules.items():
            module.load_state_dict(_below(tensors, name))
        _load_optimizer(trained.optimizer, _below(tensors, "optimizer"))
        return fields["step"], fields["history"]
    return 0, []


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        number, _, entry = key.partition(".")
        parameter = parameters[int(number)]
        if value.shape == parameter.shape:
            # in the parameter's own memory format: fused optimizers walk through both side by side
            value = torch.empty_like(parameter).copy_(value)
        state.setdefault(int(number), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _saved(folder: Path) -> list[Path]:
    """Whole states, the newest last."""
    return sorted(path.parent for path in folder.glob("step-*/state.json"))


def _below(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
