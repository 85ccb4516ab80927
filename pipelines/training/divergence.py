"""Training that has gone wrong is stopped, and nothing of it is written."""

import math
from pathlib import Path

import torch
from torch import nn

from codegrid.errors import InputError


def limit_gradient(model: nn.Module, max_norm: float) -> torch.Tensor:
    """The length () of the gradient, which is cut to `max_norm`."""
    if max_norm < math.inf:
        return nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.stack([gradient.norm() for gradient in gradients]).norm()


class FiniteCheck:
    """Looks at losses and gradients: on a GPU not at every step, because each look waits for it."""

    def __init__(self, states: Path) -> None:
        self.states = states
        self._seen: list[tuple[int, dict[str, torch.Tensor]]] = []

    def note(self, step: int, **figures: torch.Tensor) -> None:
        """Remember the figures () of a step, the first being 1."""
        self._seen.append((step, figures))

    def look(self) -> None:
        """Raise InputError, naming the first step with a figure that is not finite, if there is one."""
        for step, figures in self._seen:
            for name, figure in figures.items():
                if not math.isfinite(value := figure.item()):
                    refuse(self.states, step, f"the {name} is {value}")
        self._seen.clear()


def refuse(states: Path, step: int, words: str) -> None:
    """Raise InputError with what is wrong after a step, and what there is that is not."""
    saved = sorted(path.parent.name for path in states.glob("step-*/state.json"))
    last = f"the last good state is {states / saved[-1]}" if saved else "no state was saved yet"
    raise InputError(f"step {step}: {words}; {last}. Start again with a smaller --lr, in another --output")
