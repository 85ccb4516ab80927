"""The prior that the settings choose: which grids it learns, which it is given, and what else it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import partial
from typing import Any, cast

import torch

from codegrid.codes import Layout
from codegrid.errors import InputError
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.protocols import Prior
from codegrid.registry import TABLES
from codegrid.scales import tables_of_grids
from codegrid.stage2_prior.text_tokenizer import TextTokenizer

from .trainer import seed_torch

Tables = dict[str, torch.Tensor]


def make_prior(
    settings: TrainPrior,
    whole: Layout,
    tables: Callable[[], Tables],
    num_classes: int = 0,
    text_tokenizer: TextTokenizer | None = None,
    num_actions: int = 0,
) -> Prior:
    """Return a prior of the grids that the settings choose of the whole layout, conditioned on the coarser ones.

    `tables` returns those of the codes, and is called only for a prior that takes them. A text tokenizer makes a prior
    over texts.

    Raises `InputError` if a prior of this kind cannot learn them. The message names those that can.
    """
    grids = choose_grids(settings.grid, len(whole))
    more = {"num_actions": num_actions}
    if text_tokenizer is not None:
        more |= {"num_words": text_tokenizer.num_words, "text_length": settings.text_length}
    build = partial(_build, whole=whole, grids=grids, tables=tables, num_classes=num_classes, sizes=more)
    seed_torch(settings.seed, "weights")
    try:
        prior: Any = build(settings.model, settings.options)
    except InputError as error:
        able = _able(build)
        if settings.model in able or not (remedies := _remedies(settings.model, whole, grids, able)):
            raise  # its options are wrong
        raise InputError(f"{error}; {', or '.join(remedies)}") from error
    if text_tokenizer is not None:
        prior.text_tokenizer = text_tokenizer
    return cast(Prior, prior)


def _build(
    name: str,
    options: Mapping[str, Any],
    whole: Layout,
    grids: tuple[int, ...],
    tables: Callable[[], Tables],
    num_classes: int,
    sizes: Mapping[str, int],
) -> Prior:
    """Return the prior of a name over some grids, given all coarser ones; `sizes` are those of other conditions."""
    more: dict[str, Any] = {part: size for part, size in sizes.items() if part != "num_actions" or takes(name, part)}
    known = {"given_grids": tuple(range(grids[0])), "given_layout": whole[: grids[0]]}
    if grids[0] and not takes(name, "given_grids"):
        numbers = " ".join(map(str, grids))
        raise InputError(f"`grid` {numbers}: a {name} prior cannot be conditioned on the coarser grids")
    if grids[0]:
        more |= {part: value for part, value in known.items() if takes(name, part)}
    if takes(name, "tables"):
        more["tables"] = tables_of_grids(tables(), grids)
    layout = tuple(whole[grid] for grid in grids)
    prior: Prior = TABLES["prior"][name](layout=layout, grids=grids, num_classes=num_classes, **more, **options)
    return prior


def takes(name: str, part: str) -> bool:
    """Return whether the prior of a name is built from a part, such as `given_grids` or `num_words`."""
    return part in inspect.signature(TABLES["prior"][name]).parameters


def takes_both(name: str) -> bool:
    """Return whether the prior of a name can learn labels and texts at once: it must be able to hide each."""
    return {"label_dropout", "caption_dropout"} <= {option.name for option in fields(TABLES["prior"].options(name))}


def _able(build: Callable[[str, Mapping[str, Any]], Prior]) -> list[str]:
    """Return the names of the priors that `build` can build with their default options."""
    able = []
    for name in TABLES["prior"]:
        with suppress(Exception), torch.device("meta"):  # a user's own prior may fail in any way
            build(name, {})
            able.append(name)
    return able


def _remedies(name: str, whole: Layout, grids: tuple[int, ...], able: list[str]) -> list[str]:
    """Return what to do, in words, if the prior of a name cannot learn these grids, but others are able to."""
    remedies = []
    if grids[0] and not takes(name, "given_grids") and len({grid.shape for grid in whole}) == 1:
        remedies.append("leave `grid` out, so that it learns them all")
    if len({whole[grid].shape for grid in grids}) > 1 and takes(name, "given_grids"):
        and_so_on = f", and so on to {len(whole) - 1}" * (len(whole) > 2)
        remedies.append(f"train one for each grid: with `grid` 0, then with `grid` 1{and_so_on}")
    if able:
        remedies.append(f"choose a `model` that learns them{' together' * (len(grids) > 1)}: {', '.join(able)}")
    return remedies


def choose_grids(wanted: tuple[int, ...], available: int) -> tuple[int, ...]:
    """Return the numbers of the grids to learn, by default all of them.

    Raises `InputError` if there is no such grid, or the numbers are not consecutive: a prior can be conditioned on
    coarser grids, but not on finer ones.
    """
    grids = tuple(sorted(wanted)) or tuple(range(available))
    said = f"`grid` {' '.join(map(str, wanted))}"
    if grids[0] < 0 or grids[-1] >= available:
        raise InputError(f"{said}: these codes have the grids 0 to {available - 1}")
    if grids != tuple(range(grids[0], grids[-1] + 1)):
        raise InputError(f"{said}: give consecutive numbers, each once")
    return grids
