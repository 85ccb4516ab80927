"""Matching tokenizers and priors: the priors' names in a run, their classes, and the check that they fit.

Shapes: b batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from codegrid.codes import NO_LABEL, Condition, Layout
from codegrid.errors import InputError
from codegrid.protocols import Prior, Tokenizer


def prior_names(count: int) -> list[str]:
    """Return the names of `count` priors, which are also their folders in a run: prior, or prior-0, prior-1, ..."""
    return ["prior"] if count == 1 else [f"prior-{i}" for i in range(count)]


def spoken_by(tokenizer: Tokenizer, given: Condition, classes: Sequence[str]) -> Condition:
    """Return what a tokenizer's decoder is given, for labels of these classes: its own labels of the same names.

    NO_LABEL stands for others. A tokenizer that knows no speakers is given the labels as they are, and ignores them.
    """
    if not getattr(tokenizer, "num_classes", 0) or given.labels is None:
        return given
    names = tokenizer.provenance.get("classes", [])
    known = [names.index(name) if name in names else NO_LABEL for name in classes]
    return given._replace(labels=torch.tensor([*known, NO_LABEL])[given.labels.cpu()])  # -1 is the last one


def check_pairing(tokenizer: Tokenizer, priors: Sequence[Prior]) -> None:
    """Raise `InputError` if priors learnt another tokenizer's codes, or do not draw each of its grids exactly once."""
    if not priors:
        raise InputError("`prior`: at least one is needed to draw codes")
    fingerprint, layout = tokenizer.fingerprint(), tokenizer.layout
    names = ["this prior"] if len(priors) == 1 else [f"prior {number}" for number in range(len(priors))]
    for name, prior in zip(names, priors, strict=True):
        if prior.provenance.get("tokenizer_fingerprint") != fingerprint:
            raise InputError(
                f"{name} was trained on the codes of another tokenizer (the fingerprints differ): give the tokenizer "
                "that made them, or train a prior on this one's codes"
            )
        for number, grid in zip(prior.grids, prior.layout, strict=True):
            if number >= len(layout) or layout[number] != grid:
                there = f"has {layout[number]}" if number < len(layout) else f"has only {len(layout)} grids"
                raise InputError(
                    f"{name} draws {grid} as grid {number}, but the tokenizer {there}: train a prior on this "
                    "tokenizer's codes"
                )
    _check_grids(layout, priors)
    learnt = [prior.conditions.classes for prior in priors if prior.conditions.num_classes]
    if any(classes != learnt[0] for classes in learnt):
        raise InputError("the priors learnt different classes: train them on the same codes")


def _check_grids(layout: Layout, priors: Sequence[Prior]) -> None:
    """Raise `InputError` if priors do not draw each grid exactly once, coarse to fine, each given only earlier ones."""
    for number, grid in enumerate(layout):
        drawing = [f"prior {place}" for place, prior in enumerate(priors) if number in prior.grids]
        if not drawing:
            raise InputError(
                f"no prior draws grid {number} of the tokenizer ({grid}): give one that does, which `codegrid "
                f"train-prior` trains with `grid` {number}"
            )
        if len(drawing) > 1:
            raise InputError(
                f"{' and '.join(drawing)} draw the same grid {number} of the tokenizer ({grid}): give only one of them"
            )
    numbers = [number for prior in priors for number in prior.grids]
    if numbers != sorted(numbers):
        in_order = sorted(range(len(priors)), key=lambda place: min(priors[place].grids))
        named = ", ".join(f"prior {place} (grid {min(priors[place].grids)})" for place in in_order)
        raise InputError(f"the priors are not in order: give them coarse to fine: {named}")
    for place, prior in enumerate(priors):
        earlier = numbers[: numbers.index(prior.grids[0])]
        if unknown := [number for number in prior.given_grids if number not in earlier]:
            raise InputError(
                f"prior {place} must be given grid {unknown[0]}, which no prior before it draws: train it again on "
                "grids that come later"
            )
