"""How much of the codebook is in use.

Shapes: n grids, h w code grid, K num_embeddings.
"""

import math

import torch

from codegrid.stage1_vqvae.usage import usage_of

from .finding import FAULT, WARNING, Figures, Finding, Row, pick

# Sound codebooks of the README have a perplexity of 0.59 to 0.89 of K and use 97 to 100 % of the entries; collapsed
# ones 0.08 and 2 to 17 %. Both bars lie in between, on a scale that few codes cannot shift: see `_reachable`.
LEAST_PERPLEXITY = 0.25
LEAST_USED = 0.5
MOSTLY_USED = 0.8  # below it capacity is wasted, though the codebook lives

ROWS = {
    "perplexity": Row("perplexity of the codes, at most K", "0.6 K to 0.9 K", ".1f"),
    "num_embeddings": Row("K, entries of the codebook", "", ".0f"),
    "perplexity_share": Row("perplexity over what these codes could reach", f"above {LEAST_PERPLEXITY}"),
    "used_share": Row("entries in use, over what these codes could reach", f"above {MOSTLY_USED}"),
    "unused_entries": Row("entries that no code names", "few", ".0f"),
}
REMEDY = (
    "Train the tokenizer again with --revival-threshold 0.3 (unused entries move to latents), --quantizer clustered or "
    "--kmeans-steps 10, or a lower --lr; usage.png of evaluate shows the codebook. Then export the codes and train the "
    "prior anew."
)


def measure_codebook(counts: torch.Tensor) -> Figures:
    """Usage of a codebook whose entries occurred `counts` (K,) times."""
    usage, reachable = usage_of(counts), _reachable(int(counts.sum()), len(counts))
    return {
        "num_embeddings": len(counts),
        "perplexity": usage.perplexity,
        "perplexity_share": usage.perplexity / reachable,
        "used_share": (len(counts) - usage.unused_entries) / reachable,
        "unused_entries": usage.unused_entries,
    }


def _reachable(codes: int, num_embeddings: int) -> float:
    """How many entries as many codes would name, were all equally frequent: below K where the codes are few."""
    return max(1.0, num_embeddings * -math.expm1(-codes / num_embeddings))


def find_collapse(figures: Figures) -> list[Finding]:
    """A codebook of which little is in use."""
    if "perplexity" not in figures:
        return []
    total = f"{figures['num_embeddings']:.0f} entries"
    why = f"perplexity {figures['perplexity']:.1f} of {total}, {figures['unused_entries']:.0f} are never used"
    used = pick(figures, *ROWS)
    if figures["perplexity_share"] < LEAST_PERPLEXITY or figures["used_share"] < LEAST_USED:
        return [Finding(FAULT, "tokenizer", f"The codebook has collapsed: {why}.", REMEDY, used)]
    if figures["used_share"] < MOSTLY_USED:
        return [Finding(WARNING, "tokenizer", f"Many codebook entries are dead: {why}.", REMEDY, used)]
    return []
