"""Ranking captions: under which of them an image's codes are likeliest.

Shapes: n images, m captions, t words of a text, *shape the sites of each grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from codegrid.codes import Codes, Condition
from codegrid.data.loading import in_order
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.protocols import Prior
from codegrid.stage2_prior.conditions import conditions_of
from codegrid.stage2_prior.options import readers_of_texts
from codegrid.stage2_prior.ranking import check_likelihood, total_nats


class Ranking(NamedTuple):
    """Captions, ranked for each of some images."""

    captions: tuple[str, ...]  # m
    nats: torch.Tensor  # (n, m) float64: −ln p(codes | caption), or an estimate of a bound on it

    @property
    def order(self) -> torch.Tensor:
        """Numbers (n, m) int64 of the captions of each image, the likeliest first."""
        return self.nats.argsort(dim=1, stable=True)

    @property
    def best(self) -> list[str]:
        """The likeliest caption of each image."""
        return [self.captions[number] for number in self.order[:, 0].tolist()]


def words_to_rank(priors: Sequence[Prior], captions: Sequence[str]) -> torch.Tensor:
    """Return the words (m, t) of captions that priors of one tokenizer are to rank.

    Raises `InputError` if no prior reads texts, one that does has no likelihood, or a caption cannot be read whole.
    """
    conditions = conditions_of(priors)
    if not conditions.num_words:
        raise InputError(f"`prior`: it is not conditioned on texts ({readers_of_texts()}): give one that is")
    check_likelihood(priors)
    if not captions:
        raise InputError("`captions`: give the texts to rank")
    return conditions.read(captions, "captions")


def nats_of_texts(
    priors: Sequence[Prior],
    codes: Codes,
    texts: torch.Tensor,
    batch_size: int = 128,
    seed: int = 0,
    tell: Callable[[int], object] = lambda pairs: None,
    first_index: int = 0,
) -> torch.Tensor:
    """Return −ln p(codes | text) (n, m) float64 of each image under each text, on the CPU.

    If a prior gives a bound, the noise of an image is the same for all texts, so that they can be compared.

    Args:
        priors: of one tokenizer, coarse to fine.
        codes: (n, *shape) of all its grids.
        texts: words (m, t).
        batch_size: images computed at once.
        seed: of the noise of a bound.
        tell: called with the number of pairs of an image and a text that were computed.
        first_index: number of the first image, which decides its noise.

    Raises `InputError` if a prior has no likelihood, or does not read texts.
    """
    batches = []
    for rows in in_order(len(codes[0]), batch_size):
        some = tuple(grid[rows.start : rows.stop] for grid in codes)
        noise = Noise(seed, first_index + rows.start, len(rows), priors[0].device, ("ranking",))
        columns = []
        for text in texts:
            given = Condition(text=text.expand(len(rows), -1))
            columns.append(total_nats(priors, some, given, noise).cpu().double())
            tell(len(rows))
        batches.append(torch.stack(columns, dim=1))
    return torch.cat(batches)
