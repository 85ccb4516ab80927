"""The state of an optimizer, as it is written to disk and read again."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .sharding import deal_out

Tensors = dict[str, torch.Tensor]


class OptimizerState(NamedTuple):
    """The state of any optimizer: its tensors, and its numbers as JSON values."""

    tensors: Tensors  # `number of the parameter.name`
    numbers: Any  # {"state": {number of the parameter: {name: value}}, "groups": [{name: value}]}

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> OptimizerState:
        """Return the current state of an optimizer: nothing for parameters that have not moved yet."""
        held = optimizer.state_dict()
        tensors: Tensors = {}
        numbers: dict[str, dict[str, Any]] = {}
        for number, values in held["state"].items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{number}.{name}"] = value
                else:
                    numbers.setdefault(str(number), {})[name] = value
        # bools say how an optimizer computes, and may differ on another machine
        groups = [
            {name: value for name, value in group.items() if type(value) in (int, float)}
            for group in held["param_groups"]
        ]
        return cls(tensors, {"state": numbers, "groups": groups})

    def dealt_out(self, optimizer: torch.optim.Optimizer, device: torch.device) -> OptimizerState:
        """Return this process's share of the first process's state. All processes must call this."""
        parameters, scalar = _parameters(optimizer), torch.empty(())
        likes = {
            key: parameters[int(key.partition(".")[0])] if value.ndim else scalar for key, value in self.tensors.items()
        }
        return self._replace(tensors={key: deal_out(value, likes[key], device) for key, value in self.tensors.items()})

    def fits(self, optimizer: torch.optim.Optimizer) -> bool:
        """Return whether this can be the state of an optimizer.

        Each tensor must be a scalar or have its parameter's shape. In each group all parameters must hold the same
        names, or nothing: a parameter that never had a gradient holds nothing.
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
        """Load this state into an optimizer."""
        parameters = _parameters(optimizer)
        state: dict[int, dict[str, Any]] = {int(number): dict(held) for number, held in self.numbers["state"].items()}
        for key, value in self.tensors.items():
            number, _, name = key.partition(".")
            parameter = parameters[int(number)]
            if value.shape == parameter.shape and value.ndim:
                # in the parameter's own memory format: fused optimizers read both side by side
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            state.setdefault(int(number), {})[name] = value
        groups = optimizer.state_dict()["param_groups"]
        for group, numbers in zip(groups, self.numbers["groups"], strict=True):
            group |= {name: value for name, value in numbers.items() if name in group}
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _names(self) -> dict[int, set[str]]:
        """Return the names that each parameter holds, by its number."""
        names = {int(number): set(held) for number, held in self.numbers["state"].items()}
        for key in self.tensors:
            number, _, name = key.partition(".")
            names.setdefault(int(number), set()).add(name)
        return names


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
