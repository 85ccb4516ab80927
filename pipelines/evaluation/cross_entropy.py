"""How likely data are under a decoder that draws them, given their codes, others, or none: what the codes are worth.

Codes carry at most their rate: beside an ideal decoder without codes, one with codes gains no more than that.

Shapes: n items of all batches, b batch, *shape the sites of each grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from codegrid.codes import HIDDEN, NO_LABEL, Codes, Condition
from codegrid.data.images import ImageBatch, to_float
from codegrid.pipelines.generation.pairing import spoken_by
from codegrid.progress import progress_bar
from codegrid.protocols import Tokenizer
from codegrid.stage1_vqvae.usage import LayoutUsage

from .reconstruction import hide_padding

Given = Callable[
    [Codes, Codes, Condition], tuple[Codes, Condition]
]  # own codes, another's, the speaker's → what is given


@torch.no_grad()
def measure_nats(
    tokenizer: Tokenizer, batches: Iterable[ImageBatch], classes: Sequence[str] = (), every: bool = False
) -> dict[str, Any]:
    """Return how likely each value is under a tokenizer's own decoder, and how much of the codebooks is used.

    `nats` is the mean of a value given the item's own codes, `swapped_nats` that given the codes of the item that is
    half of all items away: as long as they are equal, the decoder ignores the codes. With `every`, `hidden_nats` is
    that without codes, if training hid some, and `swapped_speaker_nats` and `hidden_speaker_nats` are those given its
    codes and the next speaker, or none. `NAME_error` is the standard error of `NAME` - `nats`; `rate_nats` is the most
    that codes can tell of a value.

    The tokenizer must be in eval mode, and have a likelihood; `classes` names the labels. Padding does not count.
    """
    items, codes, counts = list[ImageBatch](), list[Codes](), list[torch.Tensor]()
    usage = LayoutUsage(tokenizer.layout)
    for batch in batches:
        items.append(batch)
        codes.append(tokenizer.encode(to_float(batch.images.to(tokenizer.device))))
        usage.add(hide_padding(tokenizer, codes[-1], batch.lengths))
        values = batch.images[0].numel()
        counts.append(torch.full((len(batch.images),), values) if batch.lengths is None else batch.lengths)
    every_code = [torch.cat(grids) for grids in zip(*codes, strict=True)]
    distant = [grid.roll(len(grid) // 2, dims=0) for grid in every_code]
    ways = {"nats": as_it_is, "swapped_nats": with_other_codes, **(more_ways(tokenizer) if every else {})}
    found = {name: list[torch.Tensor]() for name in ways}
    first = 0
    for batch, own in zip(progress_bar(items, "nats", disable=not every), codes, strict=True):
        x = to_float(batch.images.to(tokenizer.device))
        others = tuple(grid[first : first + len(x)] for grid in distant)
        speaker = spoken_by(tokenizer, Condition(batch.labels, lengths=batch.lengths), classes)
        for name, way in ways.items():
            nats = tokenizer.nll(x, *way(own, others, speaker))
            assert nats is not None
            found[name].append(nats.cpu().double())
        first += len(x)
    count = torch.cat(counts).double().mean()
    nats_of_codes = sum(grid.num_sites * math.log(grid.num_embeddings) for grid in tokenizer.layout)
    return {
        **compare_nats({name: torch.cat(each) / count for name, each in found.items()}),
        "rate_nats": nats_of_codes / math.prod(tokenizer.signal.shape),
        **usage.figures()._asdict(),
        "grids": [one._asdict() for one in usage.by_grid()],
    }


def compare_nats(found: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the mean of each (n,), and of each but `nats` the standard error of its difference to `nats`."""
    results = {}
    for name, nats in found.items():
        results[name] = float(nats.mean())
        if name != "nats":
            gaps = nats - found["nats"]
            results[f"{name}_error"] = float(gaps.std() / len(gaps) ** 0.5) if len(gaps) > 1 else 0.0
    return results


def as_it_is(own: Codes, others: Codes, speaker: Condition) -> tuple[Codes, Condition]:
    """Give the item's own codes."""
    return own, speaker


def with_other_codes(own: Codes, others: Codes, speaker: Condition) -> tuple[Codes, Condition]:
    """Give another item's codes."""
    return others, speaker


def without_codes(own: Codes, others: Codes, speaker: Condition) -> tuple[Codes, Condition]:
    """Give no codes."""
    return tuple(torch.full_like(grid, HIDDEN) for grid in own), speaker


def more_ways(tokenizer: Any) -> dict[str, Given]:
    """Return further ways to give a decoder its condition, those that it has learnt."""
    ways: dict[str, Given] = {}
    if tokenizer.config.get("code_dropout"):
        ways["hidden_nats"] = without_codes
    count = getattr(tokenizer, "num_classes", 0)
    if count < 2:
        return ways

    def with_next_speaker(own: Codes, others: Codes, speaker: Condition) -> tuple[Codes, Condition]:
        labels = speaker.labels
        return own, speaker._replace(
            labels=None if labels is None else torch.where(labels < 0, labels, (labels + 1) % count)
        )

    def without_speaker(own: Codes, others: Codes, speaker: Condition) -> tuple[Codes, Condition]:
        labels = speaker.labels
        return own, speaker._replace(labels=None if labels is None else torch.full_like(labels, NO_LABEL))

    return ways | {"swapped_speaker_nats": with_next_speaker, "hidden_speaker_nats": without_speaker}
