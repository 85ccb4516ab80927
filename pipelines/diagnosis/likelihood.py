"""The likelihood of codes: has a prior learnt enough, and not by heart? It is compared with plain code frequencies.

Shapes: n rows, *shape the sites of a grid, K num_embeddings.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from codegrid.protocols import Prior
from codegrid.stage2_prior.likelihood import measure, measure_error

from .finding import FAULT, WARNING, Finding, Metrics, Row, Subject, join_words, name_flags, pick
from .parts import Rows

# Measured on four sound runs: the demo (4,500 digits), MNIST, CIFAR-10 and a folder of mixed pictures.
# Their priors save 18 to 49 % of the bits that frequencies need on held-out grids, the demo's 20 % after a tenth of its
# training; fresh weights save nothing.
MIN_SAVED = 0.05
# Learning training grids by heart does not help with other grids. Three priors save on held-out grids 0.98 to 1.02 of
# what they save on training grids, and the demo's, kept long after its best step for its samples' sake, 0.66.
MIN_KEPT = 0.5
# A grid whose codes are known without looking at the image has nothing to learn: losses near 0 are no success. Codes of
# the sound runs have 3 to 9 bits each by their frequencies.
MIN_BITS = 0.1
# Bits with the coarser grids of another image, over those with its own: below it, the prior makes nothing of them.
MIN_USE = 0.01
PRIOR_COUNTS = 8.0  # rows that the frequencies of the whole grid are worth at a single site

ROWS = {
    "entropy": Row("entropy of single codes, bits"),
    "frequency_bits": Row("bits per code of frequencies, whole grid"),
    "site_frequency_bits": Row("bits per code of frequencies, site by site"),
    "training_bits": Row("bits per code of the prior, training grids", high=lambda m: 0.85 * _without_context(m)),
    "held_out_bits": Row("bits per code of the prior, held-out grids", high=lambda m: 0.85 * _without_context(m)),
    "kept_share": Row("bits it saves: held-out over training grids", low=0.6),
    "training_error": Row("denoising error, training grids", ".3f"),
    "held_out_error": Row("denoising error, held-out grids", ".3f"),
    "shuffled_bits": Row(
        "its bits with another image's coarser grids", low=lambda m: (1 + MIN_USE) * m.get("held_out_bits", 0.0)
    ),
    "first_site_bits": Row("its bits for the first code, held-out grids"),
    "edge_bits": Row("its bits at the first sites of each axis"),
    "inner_bits": Row("its bits in the rest of the grid", high=lambda m: m["inner_frequency_bits"]),
    "inner_frequency_bits": Row("bits of frequencies in the rest of the grid"),
}
# With several grids, other codes may predict little of the finest one.
OF_GRID = ROWS | {
    name: ROWS[name]._replace(high=lambda m: _without_context(m)) for name in ("training_bits", "held_out_bits")
}
PRIOR = Subject("The prior")


class Frequencies(NamedTuple):
    """Frequencies of codes, in a grid as a whole and at each site, smoothed so that none is 0."""

    overall: torch.Tensor  # (K,) float64, sums to 1
    pairs: torch.Tensor  # (m,) int64, sorted: site · K + code, for the pairs that occur
    counts: torch.Tensor  # (m,) int64
    num_rows: int

    def bits_overall(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the mean −log2 of the frequencies of codes (n, *shape) in the grid as a whole: (*shape)."""
        return -self.overall[codes].log2().mean(0)

    def bits_by_site(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the mean −log2 of the frequencies of codes (n, *shape) at their sites: (*shape)."""
        wanted = _pair(codes, len(self.overall))
        places = torch.searchsorted(self.pairs, wanted).clamp_max(len(self.pairs) - 1)
        counts = torch.where(self.pairs[places] == wanted, self.counts[places], 0)
        smoothed = counts + PRIOR_COUNTS * self.overall[codes.flatten(1)]
        return -(smoothed / (self.num_rows + PRIOR_COUNTS)).log2().mean(0).view(codes.shape[1:])


def count_frequencies(codes: torch.Tensor, num_embeddings: int) -> Frequencies:
    """Count the codes (n, *shape) of a grid."""
    overall = torch.bincount(codes.flatten(), minlength=num_embeddings).double() + 1
    pairs, counts = _pair(codes, num_embeddings).unique(return_counts=True)
    return Frequencies(overall / overall.sum(), pairs, counts, len(codes))


def entropy_of(codes: torch.Tensor, num_embeddings: int) -> float:
    """Return the entropy in bits of single codes (n, *shape)."""
    p = torch.bincount(codes.flatten(), minlength=num_embeddings).double() / codes.numel()
    return float(torch.special.entr(p).sum()) / math.log(2)


def _pair(codes: torch.Tensor, num_embeddings: int) -> torch.Tensor:
    """Return a number for each pair of site and code, (n, sites)."""
    sites = codes.flatten(1)
    return torch.arange(sites.shape[1]) * num_embeddings + sites


class SiteBits(NamedTuple):
    """Mean bits at each site of a grid, (*shape) float64."""

    entropy: torch.Tensor  # equal at all sites
    overall: torch.Tensor  # of frequencies in the grid as a whole
    by_site: torch.Tensor  # of frequencies at each site
    edge: torch.Tensor  # bool: the first row and column, the first site of a sequence, three faces of a video
    training: torch.Tensor | None  # of the prior
    held_out: torch.Tensor | None


def measure_likelihood(prior: Prior, training: Rows | None, held_out: Rows | None) -> tuple[Metrics, list[Metrics]]:
    """Return the bits of a prior and of code frequencies in training grids: over all of its grids, and for each."""
    known = training or held_out
    if known is None:
        return {}, []
    judged = held_out or training or known
    of_training = measure(prior, training.thin_out(judged.num_rows).batches()) if training else None
    of_held_out = measure(prior, held_out.batches()) if held_out else None
    grids = []
    for place, grid in enumerate(prior.layout):
        codes, frequencies = judged.codes[place], count_frequencies(known.codes[place], grid.num_embeddings)
        entropy = torch.full(grid.shape, entropy_of(known.codes[place], grid.num_embeddings), dtype=torch.float64)
        grids.append(
            SiteBits(
                entropy,
                frequencies.bits_overall(codes),
                frequencies.bits_by_site(codes),
                edge_of(grid.shape),
                None if of_training is None else of_training.at_sites[place],
                None if of_held_out is None else of_held_out.at_sites[place],
            )
        )
    return summarise(grids), [summarise([one]) for one in grids]


def measure_use(prior: Prior, held_out: Rows | None) -> Metrics:
    """Return the bits of a prior given the coarser grids of another image; nothing if it is given none."""
    if held_out is None or not held_out.given.codes:
        return {}
    others = tuple(grid.roll(1, 0) for grid in held_out.given.codes)
    bits = measure(prior, held_out._replace(given=held_out.given._replace(codes=others)).batches())
    return {} if bits is None else {"shuffled_bits": bits.per_code}


def measure_errors(prior: Prior, training: Rows | None, held_out: Rows | None) -> Metrics:
    """Return the own measure of a prior without a likelihood, with the same noise on both sides, if it has one."""
    if prior.likelihood != "none":
        return {}
    some = training.thin_out(held_out.num_rows) if training and held_out else training
    sides = {"training_error": some, "held_out_error": held_out}
    found = {side: measure_error(prior, rows.batches()) for side, rows in sides.items() if rows}
    return {side: error for side, errors in found.items() for error in errors.values()}


def edge_of(shape: tuple[int, ...]) -> torch.Tensor:
    """Return a mask (*shape) bool of the sites that are first along any axis of a grid."""
    edge = torch.zeros(shape, dtype=torch.bool)
    for axis in range(len(shape)):
        edge.select(axis, 0).fill_(True)
    return edge


def summarise(grids: Sequence[SiteBits]) -> Metrics:
    """Return the means over all sites of some grids, and the means by position."""
    columns = {
        name: torch.cat([column.flatten() for column in parts])
        for name, parts in zip(SiteBits._fields, zip(*grids, strict=True), strict=True)
        if all(column is not None for column in parts)
    }
    names = {
        "entropy": "entropy", "frequency_bits": "overall", "site_frequency_bits": "by_site",
        "training_bits": "training", "held_out_bits": "held_out",
    }  # fmt: skip
    metrics = {name: float(columns[column].mean()) for name, column in names.items() if column in columns}
    if {"training", "held_out"} <= columns.keys():
        metrics |= _compare(metrics)
    bits = columns.get("held_out", columns.get("training"))
    if bits is not None:
        by_frequency = min((columns["by_site"], columns["overall"]), key=lambda column: float(column.mean()))
        metrics |= _by_position(bits, columns["edge"], by_frequency)
    return metrics


def _compare(metrics: Metrics) -> Metrics:
    """Return the bits that the prior saves on held-out grids, as a share of those it saves on training grids."""
    bar = _without_context(metrics)
    saved = bar - metrics["training_bits"]
    return {"kept_share": (bar - metrics["held_out_bits"]) / saved} if saved > MIN_SAVED * bar else {}


def _without_context(metrics: Metrics) -> float:
    """Return the fewest bits that frequencies need: with few grids, those at each site are not known well."""
    return min(metrics["frequency_bits"], metrics["site_frequency_bits"])


def _by_position(bits: torch.Tensor, edge: torch.Tensor, frequency_bits: torch.Tensor) -> Metrics:
    """Return bits (sites) by position: the first code, those at the edge, and the rest."""
    metrics = {"first_site_bits": float(bits[0]), "edge_bits": float(bits[edge].mean())}
    if not edge.all():
        inner = {"inner_bits": bits, "inner_frequency_bits": frequency_bits}
        metrics |= {name: float(column[~edge].mean()) for name, column in inner.items()}
    return metrics


def find_faults_of_learning(metrics: Metrics, prior: Subject = PRIOR) -> list[Finding]:
    """Find a prior that has learnt too little, or too much by heart. Few bits do not imply good pictures.

    Args:
        metrics: of `measure_likelihood`.
        prior: its name for sentences, and its options.
    """
    own = metrics.get("training_bits", metrics.get("held_out_bits"))
    if own is None or _without_context(metrics) < MIN_BITS:
        return []
    used = pick(metrics, "frequency_bits", "site_frequency_bits", "training_bits", "held_out_bits", "kept_share")
    by_site = metrics["site_frequency_bits"]
    if own > (1 - MIN_SAVED) * _without_context(metrics):
        words = (
            f"{prior.name} is undertrained: it needs {own:.2f} bits per code; the frequencies of codes alone, without "
            f"any context, need {metrics['frequency_bits']:.2f} in the grid as a whole and {by_site:.2f} at each site."
        )
        return [Finding(FAULT, "prior", words, learn_longer(prior), used, prior.of)]
    if metrics.get("kept_share", 1.0) < MIN_KEPT:
        words = (
            f"{prior.name} is overfitted: {own:.2f} bits per code on training grids, but "
            f"{metrics['held_out_bits']:.2f} on held-out ones, where frequencies alone need "
            f"{_without_context(metrics):.2f}."
        )
        fewer = ["--steps", *name_flags(prior.config, "num_layers", "channels")]
        remedy = (
            f"Train the prior on more grids (codegrid train-prior), {higher_dropout(prior)}with fewer "
            f"{join_words(fewer)}; --keep best keeps the weights from before it overfitted."
        )
        return [Finding(FAULT, "prior", words, remedy, used, prior.of)]
    return [*_find_no_context(metrics, prior), *_find_no_condition(metrics, prior)]


def find_nothing_to_learn(metrics: Metrics, grid: Subject) -> list[Finding]:
    """Find a grid whose codes hardly depend on the image: a prior of them has a loss near 0, and learns nothing.

    Args:
        metrics: of `measure_likelihood`, of this grid alone.
        grid: what it is called at the beginning of a sentence.
    """
    if "frequency_bits" not in metrics or _without_context(metrics) >= MIN_BITS:
        return []
    words = (
        f"{grid.name} says next to nothing about an image: the frequencies of its codes at each site alone need "
        f"{_without_context(metrics):.2f} bits per code, so that its prior has nothing to learn."
    )
    remedy = "Train the tokenizer again until this grid carries something (codegrid train-tokenizer), then the prior."
    used = pick(metrics, "entropy", "frequency_bits", "site_frequency_bits", "held_out_bits")
    return [Finding(FAULT, "tokenizer", words, remedy, used, grid.of)]


def learn_longer(prior: Subject) -> str:
    """Return the remedy for a prior that has learnt too little."""
    more = name_flags(prior.config, "num_layers", "channels")
    wider = f" or more {join_words(more, 'and')}" if more else ""
    return f"Train the prior longer (codegrid train-prior --steps), with a higher --lr{wider}."


def higher_dropout(prior: Subject) -> str:
    """Return a part of a remedy, `with a higher --dropout or `, if the prior has this option; else nothing."""
    return "".join(name_flags(prior.config, "dropout", before="with a higher ")) + " or " * ("dropout" in prior.config)


def _find_no_context(metrics: Metrics, prior: Subject) -> list[Finding]:
    if metrics.get("inner_bits", 0.0) <= metrics.get("inner_frequency_bits", 0.0):
        return []
    words = (
        f"{prior.name} does not use its context: inside the grid it needs {metrics['inner_bits']:.2f} bits per code, "
        f"and frequencies alone {metrics['inner_frequency_bits']:.2f}; it saves bits only at the edge."
    )
    used = pick(metrics, "edge_bits", "inner_bits", "inner_frequency_bits")
    return [Finding(WARNING, "prior", words, learn_longer(prior), used, prior.of)]


def _find_no_condition(metrics: Metrics, prior: Subject) -> list[Finding]:
    if metrics.get("shuffled_bits", math.inf) >= (1 + MIN_USE) * metrics.get("held_out_bits", 0.0):
        return []
    words = (
        f"{prior.name} makes nothing of the coarser grids: with those of another image it needs "
        f"{metrics['shuffled_bits']:.2f} bits per code, and with the right ones {metrics['held_out_bits']:.2f}."
    )
    remedy = f"{learn_longer(prior)} If a coarser grid carries nothing, the tokenizer comes first."
    return [Finding(WARNING, "prior", words, remedy, pick(metrics, "held_out_bits", "shuffled_bits"), prior.of)]
