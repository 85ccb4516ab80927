"""The use of codebooks, grid by grid: have they collapsed?

Shapes: K num_embeddings.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from codegrid.stage1_vqvae.usage import usage_of

from .finding import FAULT, WARNING, Finding, Metrics, Row, Subject, join_words, name_flags, pick

# Sound codebooks of the README have a perplexity of 0.59 to 0.89 of K and use 97 to 100 % of the entries; collapsed
# ones 0.08 and 2 to 17 %. Both bars lie in between, on a scale that few codes cannot shift: see `_reachable`.
MIN_PERPLEXITY = 0.25
MIN_USED = 0.5
MOSTLY_USED = 0.8  # below it capacity is wasted, though the codebook lives

ROWS = {
    "perplexity": Row("perplexity of the codes, at most K", ".1f"),
    "num_embeddings": Row("K, entries of the codebook", ",.0f"),
    "perplexity_share": Row("perplexity, of what as many codes could reach", low=0.5),
    "used_share": Row("entries in use, of what they could reach", low=MOSTLY_USED),
    "unused_entries": Row("entries that no code names", ",.0f"),
}
CODEBOOK = Subject("The codebook")
THEN = "usage.png of codegrid evaluate shows the codebook. Then export the codes and train the prior anew."
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
    """Return how many entries as many codes would name, were all equally frequent: below K where the codes are few."""
    return max(1.0, num_embeddings * -math.expm1(-codes / num_embeddings))


def find_collapse(metrics: Metrics, codebook: Subject = CODEBOOK) -> list[Finding]:
    """Find a codebook of which little is in use.

    Args:
        metrics: of `measure_codebook`.
        codebook: what it is called, and the tokenizer's options, if they are known.
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


def remedy_for(config: Mapping[str, Any]) -> str:
    """Return what brings unused entries back. Where they are fixed, as those of a lattice, none can move to latents."""
    if not config or "revival_threshold" in config:
        return REVIVE
    ways = [
        "longer (--steps)", "with a lower --lr",
        *name_flags(config, "num_embeddings", "fsq_levels", before="with a smaller "),
        *name_flags(config, "entropy_weight", before="with a larger "),
        "with --quantizer ema, whose entries move",
    ]  # fmt: skip
    return (
        "The entries of this quantizer are fixed, so that none can move to latents: train the tokenizer again "
        f"(codegrid train-tokenizer) {join_words(ways)}; "
    ) + THEN
