"""Models of this project, made of the weights of others.

Shapes: K num_embeddings, D embedding_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from codegrid.codes import Sides, Signal
from codegrid.errors import InputError
from codegrid.registry import TABLES
from codegrid.tensors import check_finite

from .checkpoint import Checkpoint


class Source(NamedTuple):
    """A project whose checkpoints can be imported."""

    about: str  # what it is, for people
    keys: tuple[str, ...]  # names of tensors by which its checkpoints are known
    size: Sides  # of the images that its models were trained on, unless the checkpoint tells
    # the checkpoint and the size of images → the tokenizer, or the tokenizer and the priors over its codes
    convert: Callable[[Checkpoint, Sides | None], Any]
    look: Callable[[Checkpoint], Checkpoint] = lambda checkpoint: checkpoint  # makes the names that keys are sought in


def make_tokenizer(
    checkpoint: Checkpoint, model: str, tensors: Mapping[str, Tensor], size: Sides, channels: int, **options: Any
) -> Any:
    """Return a tokenizer with weights by our names.

    Args:
        model: its name in the table of tokenizers.
        size, channels: of the images; 1 or 3 channels.
        options: its other options.

    Raises `InputError` as `make_model` does.
    """
    return make_model(checkpoint, "tokenizer", model, tensors, signal=Signal(channels=channels, size=size), **options)


def make_model(checkpoint: Checkpoint, kind: str, name: str, tensors: Mapping[str, Tensor], **options: Any) -> Any:
    """Return a model with weights by our names; counters of the uses of a codebook may be missing.

    Args:
        kind, name: its table, and its name there.
        options: what it is built from.

    Raises `InputError` if a tensor is missing, left over, infinite, or of another shape than the others need.
    """
    try:
        with torch.device("meta"):
            outline = TABLES[kind][name](**options)
    except InputError as error:
        raise InputError(f"{checkpoint.path}: this version has no such model ({error})") from error
    check_fit(checkpoint, tensors, outline.state_dict())
    check_finite(checkpoint.path, dict(tensors))
    model = TABLES[kind][name](**options)
    model.load_state_dict(tensors, strict=False)
    return model.eval()


def check_fit(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> None:
    """Raise `InputError`, naming the tensor, unless tensors have the names and shapes of those that are needed."""
    for name, tensor in needed.items():
        if name in tensors and tensors[name].shape != tensor.shape:
            shapes = f"the shape {list(tensors[name].shape)}, but the others need {list(tensor.shape)}"
            raise InputError(f"{checkpoint.path}: {name} has {shapes}: it is another variant of this model")
        if name not in tensors and not name.rpartition(".")[2].startswith("running_"):
            raise InputError(f"{checkpoint.path} lacks what becomes {name}: it is another variant of this model")
    if left := sorted(tensors.keys() - needed.keys()):
        raise InputError(f"{checkpoint.path} holds {left[0]}, too: it is another variant of this model")


def of_shape(checkpoint: Checkpoint, name: str, axes: int) -> tuple[int, ...]:
    """Return the shape of a tensor. Raises `InputError` if it is missing, or has another number of axes."""
    shape = tuple(checkpoint.take(name).shape)
    if len(shape) != axes:
        raise InputError(f"{checkpoint.path}: {name} has {len(shape)} axes, not {axes}: it is another variant")
    return shape


def count(tensors: Mapping[str, Tensor], pattern: str, first: int = 0) -> int:
    """Return how many of the names `pattern` stands for, with `{}` for `first` and so on, there are without a gap."""
    number = first
    while pattern.format(number) in tensors:
        number += 1
    return number - first
