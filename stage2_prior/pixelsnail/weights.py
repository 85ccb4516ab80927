"""Weights of layers as the cached steps use them: without gradients, as matrices."""

from typing import cast

import torch
from torch import Tensor, nn


def weight_of(table: nn.Module) -> Tensor:
    """Return the weight of a table of embeddings, without its gradient."""
    return cast(nn.Embedding, table).weight.detach()


def bias_of(layer: nn.Conv2d) -> Tensor:
    """Return the bias of a convolution that has one, without its gradient."""
    return cast(Tensor, layer.bias).detach()


def transposed(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return copies of the weight (in, out) of a 1×1 convolution, and of its bias (out,), 0 if it has none."""
    conv = cast(nn.Conv2d, layer)
    weight = conv.weight.detach().flatten(1).T.clone(memory_format=torch.contiguous_format)
    return weight, weight.new_zeros(weight.shape[1]) if conv.bias is None else bias_of(conv).clone()
