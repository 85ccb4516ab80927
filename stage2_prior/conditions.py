"""Conditions that a prior can be asked for.

A label is written as the name of a class, as its number, or as `none` for no particular class. What can be read in two
ways, because a class is called `3` or `none`, is refused: `:3` is always a number, and `:none` always no class. So are
3 and NO_LABEL, which is -1, from Python.

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

LEARNT_NONE_WITHOUT = "this prior learnt no grids without a label: train it with `label_dropout` 0.1"
UNCONDITIONAL = "this prior is unconditional; leave them out"
Labels = Sequence[int | str] | Tensor | int | str
NONE = "none"
NUMBER = re.compile("0|[1-9][0-9]{0,8}")
EXACTLY = ":"  # before a number, or none, that is not meant as a name


@dataclass(frozen=True)
class Conditions:
    """Classes that a prior knows, and the way from what a user writes to a `Condition`.

    Args:
        num_classes: labels are 0 ... num_classes-1; 0 for an unconditional prior.
        classes: their names; empty where they have none.
        unlabelled: whether the prior learnt grids of no particular class, too.

    Examples:
        >>> Conditions(3, ("cat", "dog", "owl")).resolve(["owl", "0"], 2).labels
        tensor([2, 0])
    """

    num_classes: int = 0
    classes: tuple[str, ...] = ()
    unlabelled: bool = False

    @property
    def rows_by_name(self) -> dict[str | int, int]:
        """The row of a table of embeddings that each class has, and NO_LABEL, if it has one."""
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
        """Return the condition of samples from what a user wrote.

        Args:
            labels: numbers or names of classes, `"none"` or NO_LABEL for no particular one, `":3"` and `":none"` where
                a class has such a name; one for each sample or one for all. None: all classes in turn.
            num_samples: n.
            of: what the samples are called in messages.
            first_index: number of the first sample, from which the classes go in turn.
            prompts: texts; a prior over classes takes none.

        Raises `InputError` where the prior cannot follow.
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
        """Return the condition that labels (b,) of data make; an unconditional prior ignores them."""
        return Condition(labels if self.num_classes else None)

    def check_guidance(self, guidance_scale: float, given: Condition) -> None:
        """Raise `InputError` where guidance has nothing to guide to, or nothing to guide from."""
        if guidance_scale == 1:
            return
        if not self.num_classes:
            raise InputError(f"`guidance_scale` {guidance_scale}: this prior is unconditional; leave it out")
        if not self.unlabelled:
            raise InputError(f"`guidance_scale` {guidance_scale}: {LEARNT_NONE_WITHOUT}")
        if given.labels is None or bool((given.labels == NO_LABEL).all()):
            raise InputError(f"`guidance_scale` {guidance_scale}: guidance needs `labels` to guide to")

    def rows(self, given: Condition, batch_size: int, device: torch.device, takes: Sequence[str] = ()) -> Tensor | None:
        """Return rows (b,) of a table of embeddings, one for each class and a last one for no label, or None.

        Args:
            given: the condition.
            batch_size: b.
            device: where the rows go.
            takes: parts of the condition, beside labels, that the prior takes.

        Raises `InputError` where the condition is not one that this prior learnt.
        """
        refuse_parts(given, ("labels", *takes) if self.num_classes else takes)
        if not self.num_classes:
            return None
        labels = given.labels
        if labels is None:
            labels = torch.full((batch_size,), NO_LABEL, device=device)
        if labels.shape != (batch_size,):
            raise InputError(
                f"`labels` of shape {tuple(labels.shape)}, but one for each of {batch_size} samples is needed"
            )
        if len(labels):
            self._check_numbers(*torch.stack(labels.aminmax()).tolist())  # one wait for a GPU, not two
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
    """Return labels one by one, whatever holds them: a text is one label, and so is a number."""
    if labels is None:
        return []
    if hasattr(labels, "tolist"):  # of a tensor or an array, even of a single number
        labels = labels.tolist()
    if isinstance(labels, str | bytes) or not isinstance(labels, Iterable):
        return [labels]
    return [label.item() if hasattr(label, "item") else label for label in labels]


def refuse_parts(given: Condition, takes: Sequence[str]) -> None:
    """Raise `InputError`, naming the part, where a condition has a part that a prior does not take."""
    for name, part in given._asdict().items():
        if part is None or (isinstance(part, tuple) and not part) or name in takes:
            continue
        raise InputError(f"`{name}`: this prior is not conditioned on such; leave it out")
