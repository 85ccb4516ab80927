"""Has the prior learnt enough, and not by heart?

Shapes: n grids, b batch, h w code grid.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from codegrid.data.codes import CodeBatch
from codegrid.data.images import evenly_spaced
from codegrid.stage2_prior import GatedPixelCNN
from codegrid.stage2_prior.likelihood import nats_of

from .finding import FAULT, WARNING, Figures, Finding, Row, pick
from .frequencies import count_frequencies, entropy_of

# Measured on four sound runs: the demo (4,500 digits), MNIST, CIFAR-10 and a folder of mixed pictures.
# Of the bits that frequencies need, their priors save 18 to 49 % on held-out grids, the demo's 20 % after a tenth of
# its training; fresh weights save nothing.
LEAST_SAVED = 0.05
# What is learnt of training grids by heart does not help with others. Three priors save on held-out grids 0.98 to
# 1.02 of what they save on training grids, and the demo's, kept long after its best step for its samples' sake, 0.66.
LEAST_KEPT = 0.5
MOST_ABOVE_BEST = 0.05  # of the held-out bits over the fewest of the training: 0.02 in the demo, 0 elsewhere
STILL_FALLING = 0.02  # of the bits, from the last report but one to the last: at most 0.003 in the four runs

ROWS = {
    "entropy": Row("entropy of single codes, bits", "at most log2 K"),
    "frequency_bits": Row("bits per code of frequencies in the grid as a whole", "about the entropy"),
    "site_frequency_bits": Row(
        "bits per code of frequencies at each site", "below the line above, if the grids are many"
    ),
    "training_bits": Row("the prior's bits per code, training grids", "below both lines above"),
    "held_out_bits": Row("the prior's bits per code, held-out grids", "above training grids: see the line below"),
    "kept_share": Row("what it saves on held-out grids, over training grids", f"0.6 to 1, above {LEAST_KEPT}"),
    "above_best": Row("held-out bits over the fewest while it was trained", f"below {MOST_ABOVE_BEST:.0%}", ".1%"),
    "last_gain": Row("the end of training, by how much below the report before", f"below {STILL_FALLING:.0%}", ".1%"),
    "first_site_bits": Row("bits of the first code, held-out grids", "as the corner of the pictures has it"),
    "edge_bits": Row("bits in the first row and column", "as their edges have it"),
    "inner_bits": Row("bits in the rest of the grid", "below the line below"),
    "inner_frequency_bits": Row("frequencies in the rest of the grid, bits", "above the line above"),
}
LONGER = "Train the prior longer (train_prior --steps), with a higher --lr or more --num-layers and --channels."


def measure_likelihood(prior: GatedPixelCNN, training: CodeBatch | None, held_out: CodeBatch | None) -> Figures:
    """Bits of the prior, and of frequencies of training grids, over both kinds of grids (n, h, w)."""
    figures = _read_history(prior.provenance.get("history"))
    known = training or held_out
    if known is None:
        return figures
    judged = held_out or training
    frequencies = count_frequencies(known.codes, prior.num_embeddings)
    by_site, overall = frequencies.bits_by_site(judged.codes), frequencies.bits_overall(judged.codes)
    figures["entropy"] = entropy_of(known.codes, prior.num_embeddings)
    figures["frequency_bits"], figures["site_frequency_bits"] = float(overall.mean()), float(by_site.mean())
    if training is not None:
        some = _thin_out(training, len(judged.codes))
        figures["training_bits"] = float(bits_of(prior, some).mean())
    bits = bits_of(prior, judged).mean(0)
    if held_out is not None:
        figures["held_out_bits"] = float(bits.mean())
    if training is not None and held_out is not None:
        figures |= _compare(figures)
    return {**figures, **_by_position(bits, min(by_site, overall, key=torch.mean))}


@torch.no_grad()
def bits_of(prior: GatedPixelCNN, grids: CodeBatch, batch_size: int = 256) -> torch.Tensor:
    """−log2 p(z_i | z_<i) (n, h, w) of every code, on the CPU."""
    device, pieces = next(prior.parameters()).device, []
    for first in range(0, len(grids.codes), batch_size):
        codes = grids.codes[first : first + batch_size].to(device)
        labels = grids.labels[first : first + batch_size].to(device) if prior.num_classes else None
        pieces.append(nats_of(prior(codes, labels), codes).double().cpu())
    return torch.cat(pieces) / math.log(2)


def _thin_out(grids: CodeBatch, at_most: int) -> CodeBatch:
    """Some of the grids, evenly spaced: of sorted data the first ones would show a few classes alone."""
    chosen = evenly_spaced(len(grids.codes), at_most)
    return CodeBatch(grids.codes[chosen], None if grids.labels is None else grids.labels[chosen])


def _compare(figures: Figures) -> Figures:
    """Which share of what the prior saves on training grids it saves on others."""
    bar = _without_context(figures)
    saved = bar - figures["training_bits"]
    return {"kept_share": (bar - figures["held_out_bits"]) / saved} if saved > LEAST_SAVED * bar else {}


def _without_context(figures: Figures) -> float:
    """The fewest bits that frequencies need: those at each site are not known well from few grids."""
    return min(figures["frequency_bits"], figures["site_frequency_bits"])


def _by_position(bits: torch.Tensor, frequency_bits: torch.Tensor) -> Figures:
    """Bits (h, w) by position: the first code, the first row and column, and the rest."""
    edge = torch.zeros(bits.shape, dtype=torch.bool)
    edge[0], edge[:, 0] = True, True
    figures = {"first_site_bits": float(bits[0, 0]), "edge_bits": float(bits[edge].mean())}
    if not edge.all():
        figures |= {
            "inner_bits": float(bits[~edge].mean()),
            "inner_frequency_bits": float(frequency_bits[~edge].mean()),
        }
    return figures


def _read_history(history: Any) -> Figures:
    """What the training's own reports tell; nothing where there are none, or they are not as we write them."""
    if not isinstance(history, Sequence) or not all(isinstance(one, dict) for one in history):
        return {}
    bits = [one["bits_per_code"] for one in history if isinstance(one.get("bits_per_code"), float)]
    if len(bits) < 3 or min(bits) <= 0:
        return {}
    return {"above_best": bits[-1] / min(bits) - 1, "last_gain": 1 - bits[-1] / bits[-2]}


def find_faults_of_learning(figures: Figures, kept_step_is_last: bool = True) -> list[Finding]:
    """A prior that has learnt too little, or too much by heart. Few bits say nothing of the pictures' quality.

    Args:
        kept_step_is_last: whether the weights are those of the end of training (--keep last).
    """
    own = figures.get("training_bits", figures.get("held_out_bits"))
    if own is None:
        return []
    used = pick(figures, "frequency_bits", "site_frequency_bits", "training_bits", "held_out_bits", "kept_share")
    by_site = figures["site_frequency_bits"]
    if own > (1 - LEAST_SAVED) * _without_context(figures):
        words = (
            f"The prior is undertrained: it needs {own:.2f} bits per code, and the frequencies of codes alone, without "
            f"any context, {figures['frequency_bits']:.2f} in the grid as a whole and {by_site:.2f} at each site."
        )
        return [Finding(FAULT, "prior", words, LONGER, used)]
    kept = figures.get("kept_share", 1.0)
    if kept < LEAST_KEPT:
        words = (
            f"The prior is overfitted: {own:.2f} bits per code on training grids, but {figures['held_out_bits']:.2f} "
            f"on held-out ones, where frequencies alone need {_without_context(figures):.2f}."
        )
        remedy = (
            "Train the prior on more grids, with a higher --dropout or fewer --steps, --num-layers or --channels; "
            "--keep best keeps the weights from before."
        )
        return [Finding(FAULT, "prior", words, remedy, used)]
    return [*_find_wrong_end(figures, kept_step_is_last), *_find_no_context(figures)]


def _find_wrong_end(figures: Figures, kept_step_is_last: bool) -> list[Finding]:
    """A training that went on for too long, or not for long enough."""
    used = pick(figures, "training_bits", "held_out_bits", "above_best", "last_gain")
    if kept_step_is_last and figures.get("above_best", 0.0) > MOST_ABOVE_BEST:
        words = f"The prior was trained past its best: held-out bits are {figures['above_best']:.0%} above the fewest."
        remedy = "Train the prior with --keep best, fewer --steps or a higher --dropout."
        return [Finding(WARNING, "prior", words, remedy, used)]
    if figures.get("last_gain", 0.0) > STILL_FALLING:
        words = f"The prior was still learning: its last report is {figures['last_gain']:.0%} below the one before."
        return [Finding(WARNING, "prior", words, LONGER, used)]
    return []


def _find_no_context(figures: Figures) -> list[Finding]:
    if figures.get("inner_bits", 0.0) <= figures.get("inner_frequency_bits", 0.0):
        return []
    words = (
        f"The prior makes nothing of its context: inside the grid it needs {figures['inner_bits']:.2f} bits per code, "
        f"and frequencies alone {figures['inner_frequency_bits']:.2f}; what it saves it saves at the edge."
    )
    used = pick(figures, "edge_bits", "inner_bits", "inner_frequency_bits")
    return [Finding(WARNING, "prior", words, LONGER, used)]
