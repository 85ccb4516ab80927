"""How well priors over texts know which caption is an image's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from codegrid.data.captions import choose_captions
from codegrid.data.codes import CodeBatch
from codegrid.data.images import evenly_spaced
from codegrid.pipelines.generation.ranking import nats_of_texts
from codegrid.progress import progress_bar
from codegrid.protocols import Prior
from codegrid.stage2_prior.conditions import conditions_of

MOST = 100  # images, each with one caption, which is ranked among those of all


def measure_captions(
    priors: Sequence[Prior], codes: Sequence[CodeBatch], batch_size: int, seed: int
) -> tuple[float, int] | None:
    """Return the share of images whose own caption is the likeliest of as many as there are images, and their number.

    These are up to 100 images with different captions, spread evenly over all; of several, the first caption counts.

    Args:
        priors: of one tokenizer, coarse to fine; at least one reads texts, and these have likelihoods.
        codes: all codes, with captions.
        batch_size: images computed at once.
        seed: of the noise of a bound.

    Returns None if there are fewer than two captions.
    """
    captions = [text for batch in codes for text in choose_captions(batch) or [""] * len(batch.codes[0])]
    words = conditions_of(priors).given(None, captions).text
    assert words is not None
    different = {tuple(row): number for number, row in reversed(list(enumerate(words.tolist()))) if any(row)}
    numbers = sorted(different.values())
    numbers = [numbers[place] for place in evenly_spaced(len(numbers), MOST)]
    count = len(numbers)
    if count < 2:
        return None
    chosen = tuple(torch.cat(grids)[numbers] for grids in zip(*(batch.codes for batch in codes), strict=True))
    with progress_bar(total=count**2, desc="ranking captions") as bar:
        nats = nats_of_texts(priors, chosen, words[numbers], batch_size, seed, bar.update)
    others = nats.masked_fill(torch.eye(count, dtype=torch.bool), torch.inf)
    return float((nats.diagonal() < others.amin(1)).double().mean()), count
