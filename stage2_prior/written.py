"""Labels and prompts as users write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from codegrid.errors import InputError

Labels = Sequence[int | str] | Tensor | int | str
Prompts = Sequence[str] | str


def as_list(labels: Labels | Prompts | None) -> list[object]:
    """Return labels as a list, whatever holds them; a single text or number is one label."""
    if labels is None:
        return []
    if hasattr(labels, "tolist"):  # a tensor or an array, even with no axes
        labels = labels.tolist()
    if isinstance(labels, str | bytes) or not isinstance(labels, Iterable):
        return [labels]
    return [label.item() if hasattr(label, "item") else label for label in labels]


def check_count(name: str, count: int, num_samples: int, of: str) -> None:
    """Raise `InputError` unless there is one for each of so many samples, which are called `of`, or one for all."""
    if count not in (1, num_samples):
        raise InputError(f"`{name}`: {count} {name} for {num_samples} {of}: give one for each, or one for all")
