"""Do the prior's own samples look like real grids, without being copies of them?

A prior is trained on real codes and samples from its own: what it says of real grids need not hold for what it draws.

Shapes: n grids, h w code grid, K num_embeddings.
"""

from collections.abc import Iterable

import torch

from codegrid.data.codes import CodeBatch
from codegrid.stage2_prior import GatedPixelCNN, sample_cached

from .finding import FAULT, WARNING, Figures, Finding, Row, pick
from .likelihood import bits_of

# Measured on the four runs of likelihood.py.
# Half of the summed differences of code frequencies, 0 to 1. It is not 0 between two sets of real grids either, the
# fewer the larger: samples are at most 0.01 further from training grids than as many held-out ones; fresh weights 0.18.
MOST_SHIFT = 0.10
# Samples need the prior's own entropy in bits: 0.83 to 1.01 of the bits of held-out grids, and in the overfitted demo
# still 1.16 of those of training grids. More than real grids: it loses its way in what it drew. Much less: it repeats
# itself.
MOST_ASTRAY = 1.1
LEAST_VARIED = 0.7
# Differing codes to the nearest training grid, over those of held-out grids: 1.01 to 1.05; copies have 0.
LEAST_DISTANCE = 0.5
MOST_COPIES = 0.1  # of the samples, above the share of held-out grids that are training grids: the four runs have none

ROWS = {
    "sample_bits": Row("the prior's bits per code, its own samples", "between training and held-out grids"),
    "accuracy": Row("held-out codes that its likeliest guess names, given the real ones before", "", ".1%"),
    "sample_accuracy": Row("the same of its samples, given the drawn ones before", "as many, or some more", ".1%"),
    "sample_shift": Row("frequencies of codes, samples from training grids (0 to 1)", "about the line below"),
    "held_out_shift": Row("the same, held-out from training grids", "by how few they are"),
    "sample_distance": Row("differing codes, samples to the nearest training grid", "about the line below", ".1%"),
    "held_out_distance": Row("the same, held-out grids", "", ".1%"),
    "sample_copies": Row("samples that are training grids", "about the line below", ".1%"),
    "held_out_copies": Row("held-out grids that are training grids", "", ".1%"),
}

OF_COPIES = ("sample_distance", "held_out_distance", "sample_copies", "held_out_copies")
OF_DRIFT = ("training_bits", "held_out_bits", "sample_bits", "accuracy", "sample_accuracy")


def draw_like(prior: GatedPixelCNN, grids: CodeBatch, seed: int, batch_size: int = 128) -> CodeBatch:
    """As many free samples as there are grids (n, h, w), of the same labels."""
    pieces, labels = [], grids.labels if prior.num_classes else None
    for first in range(0, len(grids.codes), batch_size):
        count = min(batch_size, len(grids.codes) - first)
        asked = None if labels is None else labels[first : first + count].tolist()
        pieces.append(sample_cached(prior, count, *grids.codes.shape[1:], asked, seed, first).cpu())
    return CodeBatch(torch.cat(pieces), labels)


def measure_samples(prior: GatedPixelCNN, samples: CodeBatch, real: CodeBatch, training: CodeBatch | None) -> Figures:
    """Samples against as many held-out grids, both as the prior finds them and by the frequencies of their codes."""
    figures = {
        "sample_bits": float(bits_of(prior, samples).mean()),
        "accuracy": _accuracy(prior, real), "sample_accuracy": _accuracy(prior, samples),
    }  # fmt: skip
    if training is not None:
        reference = _shares(training.codes, prior.num_embeddings)
        for name, grids in (("sample_shift", samples), ("held_out_shift", real)):
            difference = _shares(grids.codes, prior.num_embeddings) - reference
            figures[name] = float(difference.abs().sum() / 2)
    return figures


def measure_memory(samples: CodeBatch, real: CodeBatch, training: Iterable[CodeBatch]) -> Figures:
    """How far samples and held-out grids are from their nearest training grids, by Hamming distance over sites."""
    both = torch.cat([samples.codes, real.codes]).flatten(1)
    nearest = torch.full((len(both),), both.shape[1])
    for batch in training:
        nearest = torch.minimum(nearest, _nearest(both, batch.codes.flatten(1)))
    figures, shares = {}, nearest.double() / both.shape[1]
    for name, part in (("sample", shares[: len(samples.codes)]), ("held_out", shares[len(samples.codes) :])):
        figures[f"{name}_distance"] = float(part.mean())
        figures[f"{name}_copies"] = float((part == 0).double().mean())
    return figures


def _nearest(grids: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The fewest codes in which each of the grids (n, h·w) differs from one of the others: (n,)."""
    return torch.stack([(others != grid).sum(1).min() for grid in grids])


@torch.no_grad()
def _accuracy(prior: GatedPixelCNN, grids: CodeBatch, batch_size: int = 256) -> float:
    """The share of codes that are the likeliest given those before."""
    device, hits = next(prior.parameters()).device, 0
    for first in range(0, len(grids.codes), batch_size):
        codes = grids.codes[first : first + batch_size].to(device)
        labels = grids.labels[first : first + batch_size].to(device) if prior.num_classes else None
        hits += int((prior(codes, labels).argmax(1) == codes).sum())
    return hits / grids.codes.numel()


def _shares(codes: torch.Tensor, num_embeddings: int) -> torch.Tensor:
    return torch.bincount(codes.flatten(), minlength=num_embeddings).double() / codes.numel()


def find_faults_of_samples(figures: Figures) -> list[Finding]:
    """Samples that are copies, and samples that are not as real grids are."""
    if "sample_bits" not in figures:
        return []
    return [*_find_copies(figures), *_find_drift(figures)]


def _find_copies(figures: Figures) -> list[Finding]:
    if "sample_distance" not in figures:
        return []
    copies = figures["sample_copies"] - figures["held_out_copies"]
    if copies <= MOST_COPIES and figures["sample_distance"] >= LEAST_DISTANCE * figures["held_out_distance"]:
        return []
    words = (
        f"Samples are training grids: they differ from the nearest in {figures['sample_distance']:.0%} of their codes, "
        f"held-out grids in {figures['held_out_distance']:.0%}; {figures['sample_copies']:.0%} are copies."
    )
    remedy = (
        "Train the prior on more grids, with a higher --dropout or fewer --steps; until then sample with a higher "
        "--temperature."
    )
    return [Finding(FAULT, "samples", words, remedy, pick(figures, *OF_COPIES))]


def _find_drift(figures: Figures) -> list[Finding]:
    """Free samples that stray from what the prior says of real grids."""
    own, used = figures["sample_bits"], pick(figures, *OF_DRIFT)
    held_out, training = figures["held_out_bits"], figures.get("training_bits", figures["held_out_bits"])
    if own > MOST_ASTRAY * max(held_out, training):
        words = (
            f"Free samples go astray: the prior needs {own:.2f} bits per code for what it drew itself, but "
            f"{held_out:.2f} for real held-out grids."
        )
        remedy = "Train the prior with a higher --dropout, or sample with --top-p 0.95 or --temperature 0.9."
        return [Finding(WARNING, "samples", words, remedy, used)]
    if own < LEAST_VARIED * min(held_out, training):
        words = (
            f"Free samples repeat themselves: {own:.2f} bits per code, where real training grids take {training:.2f}."
        )
        remedy = "Train the prior longer or with a higher --dropout; sample with --temperature 1 and without --top-k."
        return [Finding(WARNING, "samples", words, remedy, used)]
    shift = figures.get("sample_shift", 0.0)
    if shift > figures.get("held_out_shift", 1.0) + MOST_SHIFT:
        words = (
            f"Free samples use other codes than real grids: their frequencies are {shift:.2f} from those of training "
            f"grids, and those of held-out grids {figures['held_out_shift']:.2f}."
        )
        remedy = "Train the prior longer (--steps), or with a higher --dropout; sample with --temperature 1."
        return [Finding(WARNING, "samples", words, remedy, pick(figures, "sample_shift", "held_out_shift"))]
    return []
