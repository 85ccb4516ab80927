"""A moving average of a model's weights: it samples and predicts better than the last weights of a noisy run."""

from functools import partial

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An average to be updated after each step; its `.module` is the model to keep."""
    return AveragedModel(model, multi_avg_fn=partial(_move_towards, decay), use_buffers=True)


@torch.no_grad()
def _move_towards(
    decay: float, averages: list[torch.Tensor], current: list[torch.Tensor], num_averaged: torch.Tensor | int
) -> None:
    # the decay grows from 0.1: a short run must not keep its random start
    decay = min(decay, (1 + int(num_averaged)) / (10 + int(num_averaged)))
    torch._foreach_lerp_(averages, current, 1 - decay)
