"""The prior that the settings choose: which grids it learns, which it is given, and what else it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch

from codegrid.codes import Layout
from codegrid.errors import InputError
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.protocols import Prior
from codegrid.registry import TABLES
from codegrid.stage2_prior.text_tokenizer import TextTokenizer

from .trainer import seed_torch

Tables = dict[str, torch.Tensor]


def make_prior(
    settings: TrainPrior,
    whole: Layout,
    tables: Callable[[], Tables],
    num_classes: int = 0,
    text_tokenizer: TextTokenizer | None = None,
) -> Prior:
    """Return a prior of the grids that the settings choose of the whole layout, conditioned on the coarser ones.

    `tables` returns those of the codes, and is called only for a prior that takes them. A text tokenizer makes a prior
    over texts in place of classes.

    Raises `InputError` if a prior of this kind cannot learn them.
    """
    grids = choose_grids(settings.grid, len(whole))
    layout, cls = tuple(whole[grid] for grid in grids), TABLES["prior"][settings.model]
    takes, more = inspect.signature(cls).parameters, dict[str, Any]()
    if grids[0]:
        if "given_grids" not in takes:
            or_all = "leave `grid` out, so that it learns them all, or " * (len({grid.shape for grid in whole}) == 1)
            raise InputError(
                f"`grid` {' '.join(map(str, grids))}: a {settings.model} prior cannot be conditioned on the coarser "
                f"grids: {or_all}choose another `model`"
            )
        known = {"given_grids": tuple(range(grids[0])), "given_layout": whole[: grids[0]]}
        more = {name: value for name, value in known.items() if name in takes}
    if "tables" in takes:
        more["tables"] = tables()
    if text_tokenizer is not None:
        more |= {"num_words": text_tokenizer.num_words, "text_length": settings.text_length}
    seed_torch(settings.seed, "weights")
    try:
        prior: Any = cls(layout=layout, grids=grids, num_classes=num_classes, **more, **settings.options)
        if text_tokenizer is not None:
            prior.text_tokenizer = text_tokenizer
        return cast("Prior", prior)
    except InputError as error:
        if len({grid.shape for grid in layout}) == 1 or "given_grids" not in takes:
            raise
        raise InputError(
            f"{error}; train one for each grid: with `grid` 0, then with `grid` 1, and so on to {len(whole) - 1}"
        ) from error


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
