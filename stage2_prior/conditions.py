"""Conditions that a prior accepts.

A label is written as the name of a class, as its number, or as `none` for no particular class. A label that is
ambiguous, because a class is called `3` or `none`, is refused: `:3` is always a number, and `:none` always no class.
In Python, 3 and NO_LABEL (-1) are never ambiguous.

Shapes: n samples, b batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codegrid.codes import NO_LABEL, Condition
from codegrid.errors import InputError
from codegrid.limits import short

LEARNT_NONE_WITHOUT = "this prior was only trained with labels: train it with `label_dropout` 0.1"
UNCONDITIONAL = "this prior is unconditional; leave them out"
Labels = Sequence[int | str] | Tensor | int | str
NONE = "none"
NUMBER = re.compile("0|[1-9][0-9]{0,8}")
EXACTLY = ":"  # before a number, or none, that is not a name


@dataclass(frozen=True)
class Conditions:
    """Classes that a prior knows; turns labels that a user writes into a `Condition`.

    Args:
        num_classes: labels are 0 ... num_classes-1; 0 for an unconditional prior.
        classes: their names; empty if they have none.
        unlabelled: whether the prior was also trained without labels.

    Examples:
        >>> Conditions(3, ("cat", "dog", "owl")).resolve(["owl", "0"], 2).labels
        tensor([2, 0])
    """

    num_classes: int = 0
    classes: tuple[str, ...] = ()
    unlabelled: bool = False

    @property
    def rows_by_name(self) -> dict[str | int, int]:
        """The row of each class in a table of embeddings, and of NO_LABEL, if it has one."""
        names = self.classes or map(str, range(self.num_classes))
        rows: dict[str | int, int] = {name: row for row, name in enumerate(names)}
        return {**rows, NO_LABEL: self.num_classes} if self.unlabelled else rows

    def resolve(
        self,
        labels: Labels | None,
        num_samples: int,
        of: str = "samples",
        first_index: int = 0,
        prompts: Sequence[str] | None = None,
    ) -> Condition:
        """Return the condition of samples for labels that a user wrote.

        Args:
            labels: numbers or names of classes, `"none"` or NO_LABEL for no particular one, `":3"` and `":none"` if a
                class has such a name; one for each sample or one for all. None: all classes in turn.
            num_samples: n.
            of: what the samples are called in messages.
            first_index: number of the first sample, which decides its class if they go in turn.
            prompts: texts; a prior over classes accepts none.

        Raises `InputError` if the prior does not accept them.
        """
        if prompts is not None:
            raise InputError("`prompts`: this prior is not conditioned on texts; leave them out")
        written = _as_list(labels)
        if not self.num_classes:
            if written:
                raise InputError(f"`labels`: {UNCONDITIONAL}")
            return Condition()
        if not written:
            return Condition(torch.arange(first_index, first_index + num_samples) % self.num_classes)
        if len(written) not in (1, num_samples):
            raise InputError(
                f"`labels`: {len(written)} labels for {num_samples} {of}: give one for each, or one for all"
            )
        numbers = torch.tensor([self._number(label) for label in written])
        return Condition(numbers.expand(num_samples).clone())

    def given(self, labels: Tensor | None) -> Condition:
        """Return the condition for the labels (b,) of a data set; an unconditional prior ignores them."""
        return Condition(labels if self.num_classes else None)

    def check_guidance(self, guidance_scale: float, given: Condition) -> None:
        """Raise `InputError` if guidance lacks labels, or a prior that was also trained without them."""
        if guidance_scale == 1:
            return
        if not self.num_classes:
            raise InputError(f"`guidance_scale` {guidance_scale}: this prior is unconditional; leave it out")
        if not self.unlabelled:
            raise InputError(f"`guidance_scale` {guidance_scale}: {LEARNT_NONE_WITHOUT}")
        if given.labels is None or bool((given.labels == NO_LABEL).all()):
            raise InputError(f"`guidance_scale` {guidance_scale}: guidance needs `labels` to guide to")

    def check_unlabelled(self, given: Condition) -> None:
        """Raise `InputError` if a sample has no label, but the prior was not trained without labels."""
        if self.num_classes and not self.unlabelled and given.labels is not None and (given.labels == NO_LABEL).any():
            raise InputError(f"`labels` {NONE}: {LEARNT_NONE_WITHOUT}")

    def rows(self, given: Condition, batch_size: int, device: torch.device, takes: Sequence[str] = ()) -> Tensor | None:
        """Return rows (b,) of a table of embeddings, one for each class and a last one for no label, or None.

        Args:
            given: the condition.
            batch_size: b.
            device: the device of the rows.
            takes: parts of the condition, besides labels, that the prior accepts.

        Raises `InputError` if this prior was not trained with such a condition.
        """
        refuse_parts(given, ("labels", *takes) if self.num_classes else takes)
        if not self.num_classes:
            return None
        labels = given.labels
        if labels is None:
            labels = torch.full((batch_size,), NO_LABEL, device=device)
        if labels.shape != (batch_size,):
            raise InputError(f"`labels` of shape {tuple(labels.shape)}, but {batch_size} samples need one label each")
        if len(labels):
            self._check_numbers(*torch.stack(labels.aminmax()).tolist())  # waits for a GPU once, not twice
        return labels.to(device, torch.int64).remainder(self.num_classes + 1)

    def _check_numbers(self, low: float, high: float) -> None:
        if low < NO_LABEL or high >= self.num_classes:
            raise self._unknown(int(high if high >= self.num_classes else low))
        if low == NO_LABEL and not self.unlabelled:
            raise InputError(f"`labels`: {LEARNT_NONE_WITHOUT}, or give one for each sample")

    def _number(self, label: object) -> int:
        readings = self._readings(label)
        if not readings:
            raise self._unknown(label)
        if len(readings) > 1:
            meanings = [f"class {each} ({self.classes[each]})" if each != NO_LABEL else "no class" for each in readings]
            ways = [EXACTLY + (str(each) if each != NO_LABEL else NONE) for each in readings]
            raise InputError(f"`labels` {short(label)} may be {' or '.join(meanings)}: write {' or '.join(ways)}")
        if readings == {NO_LABEL} and not self.unlabelled:
            raise InputError(f"`labels` {NONE}: {LEARNT_NONE_WITHOUT}")
        return readings.pop()

    def _readings(self, label: object) -> set[int]:
        """Return the numbers that a label may mean."""
        named: set[int] = set()
        if isinstance(label, str):
            word = label.removeprefix(EXACTLY)
            numbers = {NO_LABEL} if word == NONE else {int(word)} if NUMBER.fullmatch(word) else set()
            if word == label or not numbers:
                named = {number for number, name in enumerate(self.classes) if name == label}
        else:
            numbers = {label} if isinstance(label, int) and not isinstance(label, bool) else set()
        return named | {number for number in numbers if NO_LABEL <= number < self.num_classes}

    def _unknown(self, label: object) -> InputError:
        names = f" ({', '.join(self.classes[:20])})" if self.classes else ""
        return InputError(f"`labels` {short(label)}: there are classes 0 to {self.num_classes - 1}{names}")


def _as_list(labels: Labels | None) -> list[object]:
    """Return labels as a list, whatever holds them; a single text or number is one label."""
    if labels is None:
        return []
    if hasattr(labels, "tolist"):  # a tensor or an array, even with no axes
        labels = labels.tolist()
    if isinstance(labels, str | bytes) or not isinstance(labels, Iterable):
        return [labels]
    return [label.item() if hasattr(label, "item") else label for label in labels]


def refuse_parts(given: Condition, takes: Sequence[str]) -> None:
    """Raise `InputError`, naming the part, if a condition has a part that a prior does not accept."""
    for name, part in given._asdict().items():
        if part is None or (isinstance(part, tuple) and not part) or name in takes:
            continue
        raise InputError(f"`{name}`: this prior is not conditioned on this; leave it out")
