"""The use of codebooks, grid by grid: have they collapsed, and do their codes mean anything to the decoder?

Shapes: K num_embeddings.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from codegrid.stage1_vqvae.usage import usage_of

from .finding import FAULT, WARNING, Finding, Metrics, Row, Subject, join_words, name_flags, pick

# Sound codebooks in the README have a perplexity of 0.59 to 0.89 of K and use 97 to 100 % of the entries; collapsed
# ones 0.08 and 2 to 17 %. Both thresholds lie between, on a scale that a small number of codes cannot shift: see
# `_reachable`.
MIN_PERPLEXITY = 0.25
MIN_USED = 0.5
MOSTLY_USED = 0.8  # below it capacity is wasted, though the codebook lives
# The rise of the error when one grid is another image's, over the error itself: 82 and 2.5 at two depths of 512 on
# CIFAR-10, 17, 1.3 and 0.3 at three of 32 on digits after seconds of training. Their last depth scaled to a tenth, when
# it lowers the error by 15 and 3 %, has 0.19 and 0.04, and scaled to nothing 0.00. As a share of the variance a sound
# last depth has 0.02: a bar on that scale would suit coarse grids alone.
MIN_RISE = 0.1

ROWS = {
    "perplexity": Row("perplexity of the codes, at most K", ".1f"),
    "num_embeddings": Row("K, entries of the codebook", ",.0f"),
    "perplexity_share": Row("perplexity, as a share of the reachable", low=0.5),
    "used_share": Row("entries in use, as a share of the reachable", low=MOSTLY_USED),
    "unused_entries": Row("entries that no code names", ",.0f"),
    "error_rise": Row("rise of the error with another image's codes", ".4f", low=lambda m: MIN_RISE * m["error"]),
}
CODEBOOK = Subject("The codebook")
THEN = "usage.png of codegrid evaluate shows the codebook. Then export the codes and train the prior again."
REVIVE = (
    "Train the tokenizer again (codegrid train-tokenizer) with --revival-threshold 0.3 (unused entries move to "
    "latents), --quantizer clustered or --kmeans-steps 10, or a lower --lr; "
) + THEN


def measure_codebook(counts: torch.Tensor) -> Metrics:
    """Return the usage of a codebook whose entries occurred `counts` (K,) times."""
    usage, reachable = usage_of(counts), _reachable(int(counts.sum()), len(counts))
    return {
        "num_embeddings": len(counts),
        "perplexity": usage.perplexity,
        "perplexity_share": usage.perplexity / reachable,
        "used_share": (len(counts) - usage.unused_entries) / reachable,
        "unused_entries": usage.unused_entries,
    }


def _reachable(codes: int, num_embeddings: int) -> float:
    """Return how many entries this number of codes would use if all were equally likely: below K for few codes."""
    return max(1.0, num_embeddings * -math.expm1(-codes / num_embeddings))


def find_collapse(metrics: Metrics, codebook: Subject = CODEBOOK) -> list[Finding]:
    """Find a codebook of which only a small part is used.

    Args:
        metrics: of `measure_codebook`.
        codebook: its name for sentences, and the tokenizer's options, if they are known.
    """
    if "perplexity" not in metrics:
        return []
    total = f"{metrics['num_embeddings']:.0f} entries"
    why = f"perplexity {metrics['perplexity']:.1f} of {total}, {metrics['unused_entries']:.0f} are never used"
    used, remedy = pick(metrics, *ROWS), remedy_for(codebook.config)
    if metrics["perplexity_share"] < MIN_PERPLEXITY or metrics["used_share"] < MIN_USED:
        return [Finding(FAULT, "tokenizer", f"{codebook.name} has collapsed: {why}.", remedy, used, codebook.of)]
    if metrics["used_share"] < MOSTLY_USED:
        return [Finding(WARNING, "tokenizer", f"{codebook.name} has dead entries: {why}.", remedy, used, codebook.of)]
    return []


def find_idle(metrics: Metrics, grid: Subject, is_finest: bool = False) -> list[Finding]:
    """Find a grid that carries next to nothing, though its codes are in use.

    Args:
        metrics: of `measure_codebook`, with `error`, that of reconstructions, and `error_rise`, when this grid alone is
            that of another image, both as shares of the variance of the training images.
        grid: what it is called, and the tokenizer's options, if they are known.
        is_finest: whether no finer grid can have taken its part.
    """
    if "error_rise" not in metrics or metrics["error_rise"] >= MIN_RISE * metrics["error"]:
        return []
    words = (
        f"{grid.name} carries next to nothing: with the codes of another image in it, the error of reconstructions is "
        f"{metrics['error'] + metrics['error_rise']:.4f}, and with its own {metrics['error']:.4f}."
    )
    ways = ["longer (codegrid train-tokenizer --steps)"]
    ways += name_flags(grid.config, "num_quantizers", "num_factors", "scales", "levels", before="with fewer ")
    if not is_finest:  # a decoder that cannot always see finer grids learns to use it
        ways += name_flags(grid.config, "finer_dropout", before="with a higher ")
    remedy = (
        f"Train the tokenizer {join_words(ways)}: the bits of this grid are wasted, and the prior learns them as noise."
    )
    used = pick(metrics, "error_rise", "error")
    return [Finding(WARNING, "tokenizer", words, remedy, used, grid.of)]


def remedy_for(config: Mapping[str, Any]) -> str:
    """Return what brings unused entries back, also where none can be moved to latents, as those of a lattice."""
    if not config or "revival_threshold" in config:
        return REVIVE
    ways = [
        "longer (--steps)", "with a lower --lr",
        *name_flags(config, "num_embeddings", "fsq_levels", "kl_weight", before="with a smaller "),
        *name_flags(config, "entropy_weight", before="with a larger "),
        "with --quantizer ema, whose entries can",
    ]  # fmt: skip
    return (
        "The entries of this quantizer cannot be moved to latents: train the tokenizer again "
        f"(codegrid train-tokenizer) {join_words(ways)}; "
    ) + THEN
