"""Samples of a prior: do they look like real grids, without being copies of them?

A prior is trained on real codes, but samples from its own: what is true of real grids need not hold for its samples.

Shapes: n rows, *shape the sites of each grid, K num_embeddings.
"""

import math
from collections.abc import Iterable

import torch

from codegrid.codes import Grid
from codegrid.noise import Noise
from codegrid.protocols import Prior
from codegrid.sampling_config import SamplingConfig
from codegrid.stage2_prior.likelihood import measure, measure_accuracy

from .finding import FAULT, WARNING, Finding, Metrics, Row, Subject, name_flags, pick
from .likelihood import PRIOR, higher_dropout
from .parts import Rows

# Measured on the four runs of likelihood.py.
# Half the summed differences of code frequencies, 0 to 1. Two sets of real grids are not at 0 either, and smaller sets
# are further apart: samples are at most 0.01 further from training grids than as many held-out ones; those of fresh
# weights 0.18.
MAX_SHIFT = 0.10
# Samples need the prior's own entropy in bits: 0.83 to 1.01 of the bits of held-out grids, and in the overfitted demo
# still 1.16 of those of training grids. More bits than real grids: the samples go astray. Much fewer: they repeat
# themselves.
MAX_ASTRAY = 1.1
MIN_VARIED = 0.7
# Codes that differ from the nearest training grid, samples over held-out grids: 1.01 to 1.05; copies have 0.
MIN_DISTANCE = 0.5
MAX_COPIES = 0.1  # of samples, beyond the share of held-out grids that are training grids; the four runs have none
BATCH = 128

ROWS = {
    "sample_bits": Row(
        "bits per code of the prior, its own samples",
        low=lambda m: 0.8 * min(m["training_bits"], m["held_out_bits"]),
        high=lambda m: 1.05 * max(m["training_bits"], m["held_out_bits"]),
    ),
    "accuracy": Row("held-out codes guessed from those before", ".1%"),
    "sample_accuracy": Row("sampled codes guessed from those before", ".1%", low=lambda m: 0.8 * m["accuracy"]),
    "sample_shift": Row("code frequencies, samples to training grids", high=lambda m: m["held_out_shift"] + 0.05),
    "held_out_shift": Row("code frequencies, held-out to training grids"),
    "sample_distance": Row(
        "codes unlike the nearest training grid, samples",
        ".1%",
        low=lambda m: 0.8 * m["held_out_distance"],
        high=lambda m: _most(1.2 * m["held_out_distance"]),
    ),
    "held_out_distance": Row("codes unlike the nearest one, held-out grids", ".1%"),
    "sample_copies": Row("samples that are training grids", ".1%", high=lambda m: _most(m["held_out_copies"] + 0.05)),
    "held_out_copies": Row("held-out grids that are training grids", ".1%"),
}

OF_COPIES = ("sample_distance", "held_out_distance", "sample_copies", "held_out_copies")
OF_DRIFT = ("training_bits", "held_out_bits", "sample_bits", "accuracy", "sample_accuracy")


def _most(share: float) -> float:
    """Return a bound on a share; none if no share could be above it."""
    return share if share < 1 else math.inf


def sample_like(prior: Prior, real: Rows, seed: int) -> Rows:
    """Draw a sample for each of some rows, under the row's condition: its label and its coarser grids."""
    pieces = []
    for first in range(0, real.num_rows, BATCH):
        given = real.given.rows(slice(first, first + BATCH)).to(prior.device)
        noise = Noise(seed, first, min(BATCH, real.num_rows - first), prior.device, ("grid", *prior.grids))
        *_, last = prior.sample(given, noise, SamplingConfig())
        pieces.append(tuple(grid.cpu() for grid in last.codes))
    return Rows(tuple(torch.cat(grids) for grids in zip(*pieces, strict=True)), real.given)


def measure_samples(prior: Prior, samples: Rows, real: Rows, training: Rows | None) -> Metrics:
    """Compare samples with as many held-out rows, by the prior's own bits and by the frequencies of their codes.

    Metrics that a prior does not support, such as bits, are missing.
    """
    bits = measure(prior, samples.batches())
    found = {
        "sample_bits": None if bits is None else bits.per_code,
        "accuracy": measure_accuracy(prior, real.batches()),
        "sample_accuracy": measure_accuracy(prior, samples.batches()),
    }
    if training is not None:
        found["sample_shift"] = _shift(prior.layout, samples, training)
        found["held_out_shift"] = _shift(prior.layout, real, training)
    return {name: value for name, value in found.items() if value is not None}


def measure_memory(samples: Rows, real: Rows, training: Iterable[Rows]) -> Metrics:
    """Return how far samples and held-out rows are from their nearest training rows, by Hamming distance over sites."""
    both = torch.cat([samples.flat, real.flat])
    nearest = torch.full((len(both),), both.shape[1])
    for rows in training:
        nearest = torch.minimum(nearest, _nearest(both, rows.flat))
    metrics, shares = {}, nearest.double() / both.shape[1]
    for name, part in (("sample", shares[: samples.num_rows]), ("held_out", shares[samples.num_rows :])):
        metrics[f"{name}_distance"] = float(part.mean())
        metrics[f"{name}_copies"] = float((part == 0).double().mean())
    return metrics


def _nearest(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return, for each of the rows (n, sites), in how many codes it differs from the nearest of the others: (n,)."""
    return torch.stack([(others != row).sum(1).min() for row in rows])


def _shift(layout: tuple[Grid, ...], rows: Rows, others: Rows) -> float:
    """Return half the summed differences of code frequencies, as a mean over the grids."""
    shifts = []
    for grid, ours, theirs in zip(layout, rows.codes, others.codes, strict=True):
        difference = _shares(ours, grid.num_embeddings) - _shares(theirs, grid.num_embeddings)
        shifts.append(float(difference.abs().sum() / 2))
    return sum(shifts) / len(shifts)


def _shares(codes: torch.Tensor, num_embeddings: int) -> torch.Tensor:
    return torch.bincount(codes.flatten(), minlength=num_embeddings).double() / codes.numel()


def find_faults_of_samples(metrics: Metrics, prior: Subject = PRIOR) -> list[Finding]:
    """Find samples that are copies, and samples that are unlike real grids."""
    return [*_find_copies(metrics, prior), *_find_drift(metrics, prior)]


def _find_copies(metrics: Metrics, prior: Subject) -> list[Finding]:
    if "sample_distance" not in metrics:
        return []
    copies = metrics["sample_copies"] - metrics["held_out_copies"]
    if copies <= MAX_COPIES and metrics["sample_distance"] >= MIN_DISTANCE * metrics["held_out_distance"]:
        return []
    words = (
        f"Samples{_of(prior)} are training grids: they differ from the nearest in {metrics['sample_distance']:.0%} of "
        f"their codes, held-out grids in {metrics['held_out_distance']:.0%}; {metrics['sample_copies']:.0%} are copies."
    )
    remedy = (
        f"Train the prior on more grids (codegrid train-prior), {higher_dropout(prior)}with fewer --steps"
        f"{''.join(name_flags(prior.config, 'temperature', before='; until then sample with a higher '))}."
    )
    return [Finding(FAULT, "samples", words, remedy, pick(metrics, *OF_COPIES), prior.of)]


def _find_drift(metrics: Metrics, prior: Subject) -> list[Finding]:
    """Find samples that the prior itself finds unlike real grids, or whose code frequencies differ."""
    used = pick(metrics, *OF_DRIFT)
    if "sample_bits" in metrics:
        own, held_out = metrics["sample_bits"], metrics["held_out_bits"]
        training = metrics.get("training_bits", held_out)
        if own > MAX_ASTRAY * max(held_out, training):
            words = (
                f"Free samples{_of(prior)} go astray: the prior needs {own:.2f} bits per code for its own samples, "
                f"but {held_out:.2f} for real held-out grids."
            )
            remedy = f"{_train_again(prior)}, or sample with --top-p 0.95 or --temperature 0.9."
            return [Finding(WARNING, "samples", words, remedy, used, prior.of)]
        if own < MIN_VARIED * min(held_out, training):
            words = (
                f"Free samples{_of(prior)} repeat themselves: {own:.2f} bits per code, where real training grids need "
                f"{training:.2f}."
            )
            remedy = f"{_train_again(prior)}; sample with --temperature 1 and without --top-k."
            return [Finding(WARNING, "samples", words, remedy, used, prior.of)]
    if metrics.get("sample_shift", 0.0) > metrics.get("held_out_shift", 1.0) + MAX_SHIFT:
        words = (
            f"Free samples{_of(prior)} use other codes than real grids: their frequencies are "
            f"{metrics['sample_shift']:.2f} from those of training grids, and those of held-out grids "
            f"{metrics['held_out_shift']:.2f}."
        )
        at_one = [f"{flag} 1" for flag in name_flags(prior.config, "temperature", before="; sample with ")]
        remedy = f"{_train_again(prior)}{''.join(at_one)}."
        shifts = pick(metrics, "sample_shift", "held_out_shift")
        return [Finding(WARNING, "samples", words, remedy, shifts, prior.of)]
    return []


def _of(prior: Subject) -> str:
    """Return which prior's samples are meant, if there are several priors."""
    return f" of {prior.name[0].lower()}{prior.name[1:]}" if prior.name != PRIOR.name else ""


def _train_again(prior: Subject) -> str:
    return f"Train the prior {higher_dropout(prior)}longer (codegrid train-prior --steps)"
