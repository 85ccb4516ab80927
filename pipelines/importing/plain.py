"""The VQ-VAE paper's networks from the weights of others: PyTorch notebooks, VQ-VAE-2 and Sonnet differ in names only.

Each gives its layers in order, and ours have the numbers that `codegrid.stage1_vqvae.networks` gives them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Checkpoint

Layer = tuple[Tensor, Tensor | None]  # weight and bias
HALF = 0.5  # images in [-½, ½] of others are ours times this: exact in binary numbers


def numbered(layers: Sequence[Layer], place: str, plan: Iterable[int | str]) -> dict[str, Tensor]:
    """Return layers (weight, bias) by our names, in the places of a plan; a missing bias is 0.

    Args:
        place: prefix of the names.
        plan: for each layer its number in the `nn.Sequential`, or that and its place in a residual block.
    """
    named = {}
    for (weight, bias), where in zip(layers, plan, strict=True):
        named[f"{place}{where}.weight"] = weight
        # a transposed convolution has a shape of (inputs, outputs, ...), but then there always is a bias
        named[f"{place}{where}.bias"] = torch.zeros(len(weight)) if bias is None else bias
    return named


def encoder_plan(halvings: int, blocks: int, last: bool = True) -> list[int | str]:
    """Return the places of an encoder's layers: convolutions, residual blocks, and the last 1×1 convolution."""
    start = 2 * halvings + 1
    middle = [f"{start + block}.layers.{layer}" for block in range(blocks) for layer in (1, 3)]
    return [*range(0, start, 2), *middle, *[start + blocks + 1] * last]


def decoder_plan(doublings: int, blocks: int) -> list[int | str]:
    """Return the places of a decoder's layers: a convolution, residual blocks, and transposed convolutions."""
    middle = [f"{1 + block}.layers.{layer}" for block in range(blocks) for layer in (1, 3)]
    return [0, *middle, *range(blocks + 2, blocks + 2 + 2 * doublings, 2)]


def pair(checkpoint: Checkpoint, name: str) -> Layer:
    """Return the weight and the bias, if there is one, of a layer."""
    bias = f"{name}.bias"
    return checkpoint.take(f"{name}.weight"), checkpoint.take(bias) if bias in checkpoint.tensors else None


def sizes_of(weights: Mapping[str, Tensor], blocks: int, first: int) -> dict[str, Any]:
    """Return the options of the networks whose encoder has these weights by our names, from the third layer on.

    Args:
        blocks: residual blocks.
        first: place of the first one.
    """
    inside = weights.get(f"encoder.{first}.layers.1.weight")
    return {
        "hidden_channels": len(weights[f"encoder.{first - 1}.weight"]),
        "num_residual_blocks": blocks,
        **({} if inside is None else {"residual_channels": len(inside)}),
    }


def doubled(weights: Mapping[str, Tensor], first: str, last: str) -> dict[str, Tensor]:
    """Return weights that take and make images in [-1, 1] instead of [-½, ½].

    Args:
        first: prefix of the first layer's names; its input is halved.
        last: prefix of the last layer's names; its output is doubled.
    """
    changed = {f"{first}weight": HALF, f"{last}weight": 1 / HALF, f"{last}bias": 1 / HALF}
    return {name: tensor * changed.get(name, 1.0) for name, tensor in weights.items()}
