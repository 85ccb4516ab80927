"""Conditions that a prior accepts.

A label is written as the name of a class, as its number, or as `none` for no particular class. A label that is
ambiguous, because a class is called `3` or `none`, is refused: `:3` is always a number, and `:none` always no class.
In Python, 3 and NO_LABEL (-1) are never ambiguous.

A prior over texts accepts prompts, of any words; one that has learnt both accepts labels and prompts.

Shapes: n samples, b batch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codegrid.codes import NO_LABEL, PAD, Condition
from codegrid.errors import InputError
from codegrid.limits import short
from codegrid.protocols import Prior

from .options import readers_of_texts
from .text_tokenizer import TextTokenizer, pad_texts
from .written import Labels, Prompts, as_list, check_count

LEARNT_NONE_WITHOUT = "this prior was only trained with labels: train it with `label_dropout` 0.1"
LEARNT_ONLY_TEXTS = "this prior was only trained with texts: train it with `caption_dropout` 0.1"
OF_TEXTS = "this prior is conditioned on texts, not on classes: give `prompts` instead"
UNCONDITIONAL = "this prior is unconditional; leave them out"
NONE = "none"
NUMBER = re.compile("0|[1-9][0-9]{0,8}")
EXACTLY = ":"  # before a number, or none, that is not a name


@dataclass(frozen=True)
class Conditions:
    """Classes and words that a prior knows; turns labels and prompts that a user writes into a `Condition`.

    Args:
        num_classes: labels are 0 ... num_classes-1; 0 for a prior without classes.
        classes: their names; empty if they have none.
        unlabelled: whether the prior was also trained without labels and texts; always if it knows both.
        num_words: the size of the vocabulary, PAD included; 0 for a prior without texts.
        text_length: the most words of a text.
        tokenizer: turns texts into words.

    Examples:
        >>> Conditions(3, ("cat", "dog", "owl")).resolve(["owl", "0"], 2).labels
        tensor([2, 0])
    """

    num_classes: int = 0
    classes: tuple[str, ...] = ()
    unlabelled: bool = False
    num_words: int = 0
    text_length: int = 0
    tokenizer: TextTokenizer | None = None

    @property
    def is_asked(self) -> bool:
        """Whether samples can be asked for, by labels or by prompts."""
        return bool(self.num_classes or self.num_words)

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
        prompts: Prompts | None = None,
    ) -> Condition:
        """Return the condition of samples for labels and prompts that a user wrote.

        Args:
            labels: numbers or names of classes, `"none"` or NO_LABEL for no particular one, `":3"` and `":none"` if a
                class has such a name; one for each sample or one for all. None: all in turn; with prompts, none.
            num_samples: n.
            of: what the samples are called in messages.
            first_index: number of the first sample, which decides its class if they go in turn.
            prompts: texts, for a prior over texts; one for each sample or one for all. None: no text.

        Raises `InputError` if the prior does not accept them.
        """
        written = as_list(labels)
        if written and not self.num_classes:
            raise InputError(f"`labels`: {OF_TEXTS if self.num_words else UNCONDITIONAL}")
        text = torch.full((num_samples, self.text_length), PAD) if self.num_words else None
        if prompts is not None:
            text = self._resolve_prompts(prompts, num_samples, of)
        if not self.num_classes:
            return Condition(text=text)
        if not written and prompts is None:
            return Condition(torch.arange(first_index, first_index + num_samples) % self.num_classes, text)
        numbers = torch.tensor([self._number(label) for label in written or [NO_LABEL]])
        check_count("labels", len(numbers), num_samples, of)
        return Condition(numbers.expand(num_samples).clone(), text)

    def _resolve_prompts(self, prompts: Prompts, num_samples: int, of: str) -> Tensor:
        """Return the words (n, text_length) of prompts: one for each of n samples, or one for all."""
        if not self.num_words:
            instead = "give `labels` instead" if self.num_classes else "leave them out"
            raise InputError(f"`prompts`: this prior is not conditioned on texts ({readers_of_texts()}); {instead}")
        written = as_list(prompts)
        check_count("prompts", len(written), num_samples, of)
        return self.read(written, "prompts").expand(num_samples, -1).clone()

    def read(self, written: Sequence[object], name: str) -> Tensor:
        """Return the words (n, text_length) of n texts, at least one.

        Raises `InputError`, naming the parameter `name`, if one has no words, or too many to be read whole.
        """
        texts = [text for text in written if isinstance(text, str) and text.strip()]
        if len(texts) < len(written):
            empty = next(text for text in written if text not in texts)
            raise InputError(f"`{name}` {short(empty)}: write some words in each, or leave it out")
        rows = self.tokenized(texts)
        longest = max(range(len(rows)), key=lambda number: len(rows[number]))
        if len(rows[longest]) > self.text_length:
            raise InputError(
                f"`{name}` {short(texts[longest])}: {len(rows[longest])} pieces of words, but this prior reads "
                f"{self.text_length}: write less"
            )
        return pad_texts(rows, self.text_length)

    def tokenized(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the words of texts, however many. Raises `InputError` without a text tokenizer, or with another's."""
        if self.tokenizer is None:
            raise InputError("`prompts`: this prior has no text tokenizer: set its `text_tokenizer`")
        if self.tokenizer.num_words != self.num_words:
            words = f"of {self.tokenizer.num_words} words, but this prior knows {self.num_words}"
            raise InputError(f"`prompts`: the text tokenizer is {words}: set the one that it was trained with")
        return self.tokenizer.encode(texts)

    def reads(self, texts: Sequence[str]) -> list[bool]:
        """Return whether each text can be a prompt: it has words, and no more than this prior reads."""
        return [0 < len(words) <= self.text_length for words in self.tokenized(texts)]

    def given(self, labels: Tensor | None, captions: Sequence[str] | None = None) -> Condition:
        """Return the condition for labels (b,) or captions (b) of a data set; a prior ignores what it did not learn.

        A caption that is too long is cut; one that is empty is no text.
        """
        text = None
        if self.num_words and captions is not None:
            text = pad_texts(self.tokenized(captions), self.text_length)
        return Condition(labels if self.num_classes else None, text)

    def words(self, given: Condition, batch_size: int, device: torch.device) -> Tensor:
        """Return the words (b, text_length) of each sample's text, all PAD where there is none.

        Raises `InputError` if this prior was not trained with such texts.
        """
        shape, text = (batch_size, self.text_length), given.text
        if text is None:
            text = torch.full(shape, PAD)
        if tuple(text.shape) != shape:
            raise InputError(f"`text` of shape {tuple(text.shape)}, but {shape} is needed: PAD after the end of each")
        if text.numel():
            low, high = torch.stack(text.aminmax()).tolist()  # waits for a GPU once, not twice
            if low < 0 or high >= self.num_words:
                word = int(low if low < 0 else high)
                raise InputError(f"`text`: word {word}, but the words are 0 to {self.num_words - 1}")
        self.check_unlabelled(given._replace(text=text))
        return text.to(device, torch.int64)

    def check_guidance(self, guidance_scale: float, given: Condition) -> None:
        """Raise `InputError` if guidance has nothing to guide to, or the prior was not also trained without it."""
        if guidance_scale == 1:
            return
        if not self.is_asked:
            raise InputError(f"`guidance_scale` {guidance_scale}: this prior is unconditional; leave it out")
        if not self.unlabelled:
            raise InputError(f"`guidance_scale` {guidance_scale}: {self.learnt_only}")
        if not self.names_any(given):
            raise InputError(f"`guidance_scale` {guidance_scale}: guidance needs {self.asked_by} to guide to")

    @property
    def asked_by(self) -> str:
        """The names of the parameters by which samples are asked for, in words."""
        return " or ".join(["`prompts`"] * (self.num_words > 0) + ["`labels`"] * (self.num_classes > 0))

    def names_any(self, given: Condition) -> bool:
        """Return whether a condition has a text or a particular class for any sample."""
        parts = [(given.text, PAD)] * (self.num_words > 0) + [(given.labels, NO_LABEL)] * (self.num_classes > 0)
        return any(part is not None and bool((part != none).any()) for part, none in parts)

    def check_unlabelled(self, given: Condition) -> None:
        """Raise `InputError` if a sample has no label or text, but the prior was not trained without them."""
        if self.unlabelled:
            return
        if self.num_classes and given.labels is not None and (given.labels == NO_LABEL).any():
            raise InputError(f"`labels` {NONE}: {self.learnt_only}")
        if self.num_words and (given.text is None or (given.text[:, 0] == PAD).any()):
            raise InputError(f"`prompts`: {self.learnt_only}, or give one for each sample")

    @property
    def learnt_only(self) -> str:
        """Words for a prior that was not also trained without labels or texts: that, and the remedy."""
        return LEARNT_ONLY_TEXTS if self.num_words else LEARNT_NONE_WITHOUT

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


def conditions_of(priors: Sequence[Prior]) -> Conditions:
    """Return the conditions that labels and prompts are read by: those of the first prior that has most of both.

    Raises `InputError` if several priors read texts, and not in the same words.
    """
    each: list[Conditions] = [prior.conditions for prior in priors]
    readers = {(one.num_words, one.text_length, one.tokenizer) for one in each if one.num_words}
    if len(readers) > 1:
        raise InputError(
            "`prior`: these priors do not read texts in the same words: train them on the same captions, with the same "
            "`num_words` and `text_length`"
        )
    return max(each, key=lambda one: (one.num_classes > 0) + (one.num_words > 0))


def refuse_parts(given: Condition, takes: Sequence[str]) -> None:
    """Raise `InputError`, naming the part, if a condition has a part that a prior does not accept."""
    for name, part in given._asdict().items():
        if part is None or (isinstance(part, tuple) and not part) or name in takes:
            continue
        raise InputError(f"`{name}`: this prior is not conditioned on this; leave it out")
