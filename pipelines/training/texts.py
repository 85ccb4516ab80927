"""Texts that a prior learns: whether it does, and the words that it reads, which are learnt from its captions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import compress
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from codegrid.data.captions import choose_captions, places_in
from codegrid.data.code_files import AnyCodes
from codegrid.data.images import evenly_spaced
from codegrid.data.loading import in_order
from codegrid.data.manifest import CAPTIONS
from codegrid.data.splits import Subset
from codegrid.errors import InputError
from codegrid.limits import short
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.processes import broadcast_from_main
from codegrid.pipelines.running.run_folder import read_setting
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.protocols import Prior
from codegrid.stage2_prior.options import readers_of_texts
from codegrid.stage2_prior.text_tokenizer import TextTokenizer

from .chosen_prior import takes

AT_ONCE = 8192  # images whose captions are read


def choose_texts(
    settings: TrainPrior,
    codes: AnyCodes,
    training: AnyCodes | Subset,
    validation: AnyCodes | Subset,
    source: Any,
    accelerator: Accelerator,
) -> TextTokenizer | None:
    """Return the tokenizer of the captions that the prior is to learn; None if it is to learn none.

    Its words are those of the captions to train on, or of the prior that training starts from.

    Raises `InputError` if captions are asked for, and there are none, or the prior cannot learn them.
    """
    reads, are_there = takes(settings.model, "num_words"), places_in(codes.header)
    if settings.captions is not None:
        _check_are_these(settings, codes, are_there)
    if not are_there or settings.unconditional or settings.ignore_captions:
        return None
    if not reads:
        words = f"a {settings.model} prior cannot be asked in words ({readers_of_texts()}): choose another `model`"
        if settings.captions is not None:
            raise InputError(f"`captions` {settings.captions}: {words}")
        print_once(f"the captions of {settings.codes} are not learnt: {words.replace('`model`', '--model')}")
        return None
    if not places_in(getattr(validation, "header", codes.header)):
        raise InputError(f"{settings.validation_codes} has no captions, but {settings.codes} has: export it with them")
    tokenizer: TextTokenizer | None = getattr(source, "text_tokenizer", None)
    if tokenizer is None:
        tokenizer = broadcast_from_main(
            accelerator, lambda: TextTokenizer.learn(captions_of(training), settings.num_words)
        )
    _tell(settings, tokenizer, training)
    return tokenizer


def _check_are_these(settings: TrainPrior, codes: AnyCodes, are_there: int) -> None:
    """Raise `InputError` if codes have no captions, or were exported with others than those of the settings."""
    asked, place = f"`captions` {settings.captions}: {settings.codes} has", Path(codes.folder)
    if not are_there:
        raise InputError(f"{asked} none: export the codes again with them")
    held = read_setting(place if place.is_dir() else place.parent, "captions")
    if not isinstance(held, str) or Path(held).resolve() != Path(str(settings.captions)).resolve():
        told = f" ({short(held)})" if isinstance(held, str) else ""
        words = "leave `captions` out to learn these, or export the codes again with `codegrid export-codes`"
        raise InputError(f"{asked} others{told}: {words}")


def captions_of(codes: AnyCodes | Subset) -> Iterator[str]:
    """Yield all captions of codes, image by image."""
    for images in in_order(len(codes), AT_ONCE):
        column: Any = codes.batch(images).columns[CAPTIONS]
        yield from (text for texts in column for text in texts if text)


def some_captions(prior: Prior, codes: Any, at_most: int) -> list[str]:
    """Return the first captions of some images, all different, that a prior over texts can be asked for."""
    some = codes.batch(evenly_spaced(len(codes), 4 * at_most))
    captions = list(dict.fromkeys(choose_captions(some) or ()))
    return list(compress(captions, prior.conditions.reads(captions)))[:at_most]


def _tell(settings: TrainPrior, tokenizer: TextTokenizer, training: AnyCodes | Subset) -> None:
    """Print what the captions are, and how many of them are cut."""
    lengths = list(map(len, tokenizer.encode(list(captions_of(training)))))
    if not lengths:
        raise InputError(f"the images of {settings.codes} to train on have no captions: give `ignore_captions`")
    cut = sum(length > settings.text_length for length in lengths)
    longest = f"of up to {max(lengths)} words, out of {tokenizer.num_words:,}"
    told = f"; {cut:,} of them are cut to {settings.text_length} (--text-length)" * (cut > 0)
    print_once(f"captions: {len(lengths):,} {longest}{told}")
