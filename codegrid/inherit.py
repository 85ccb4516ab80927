"""Weights that one model takes over from another, tensor by tensor."""

from collections.abc import Mapping

import torch

Rows = tuple[list[int], list[int]]  # of the new tensor, and those of the old one that they become


@torch.no_grad()
def inherit_tensors(
    new: Mapping[str, torch.Tensor], old: Mapping[str, torch.Tensor], rows: Mapping[str, Rows]
) -> list[str]:
    """Set tensors in place to those of the same name, as far as they fit. Returns what stays as it was, in words.

    A tensor with more rows than the old one, a larger codebook for example, takes them all, and keeps its own others.

    Args:
        new: the tensors to set.
        old: those to take.
        rows: which rows become which, by the tensor's name, where it is not the same numbers that belong together.
    """
    fresh = []
    for name, tensor in new.items():
        source = old.get(name)
        if source is None or source.ndim != tensor.ndim or source.shape[1:] != tensor.shape[1:]:
            fresh.append(name)
        elif source.shape == tensor.shape and name not in rows:
            tensor.copy_(source)
        elif len(source) > len(tensor) and name not in rows:
            fresh.append(name)
        else:
            shared = list(range(len(source)))
            ours, theirs = rows.get(name, (shared, shared))
            tensor[ours] = source[theirs].to(tensor.dtype)
            if len(ours) < len(tensor):
                fresh.append(f"{len(tensor) - len(ours)} of {len(tensor)} rows of {name}")
    return fresh
