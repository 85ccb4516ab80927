"""Padding: items of a batch that are shorter than the others, and what of them counts.

Shapes: b batch, n places along an item's last axis.
"""

import torch


def counted(lengths: torch.Tensor, count: int) -> torch.Tensor:
    """Return which of `count` places are within the lengths (b,) of the items: (b, count) bool."""
    return torch.arange(count, device=lengths.device) < lengths[:, None]


def mean_of_counted(values: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Return the mean () of values (b, ..., n); only those within the lengths (b,) count, or all if it is None."""
    if lengths is None:
        return values.mean()
    kept = counted(lengths, values.shape[-1]).view(len(values), *[1] * (values.ndim - 2), -1).expand_as(values)
    return torch.where(kept, values, 0).sum() / kept.sum()
