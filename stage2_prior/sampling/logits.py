"""From logits to codes: guidance, temperature, top-k, top-p, then one draw.

Shapes: b batch, n sites, K num_embeddings.
"""

import torch
from torch import Tensor

from codegrid.devices import widest
from codegrid.sampling_config import SamplingConfig


def sample_from_logits(
    logits: Tensor, uniforms: Tensor, config: SamplingConfig, step: int = 0, steps: int = 1
) -> Tensor:
    """Draw codes (b, n) int64 from logits (b, n, K) with uniforms (b, n) in [0, 1).

    With guidance, logits are (2b, n, K): first those with the condition, then those without. Its scale may depend on
    which of how many steps this is.
    """
    if config.guided:
        logits = guide(logits, config.guidance_at(step, steps))
    if config.temperature == 0:
        return logits.argmax(-1)
    return draw_codes(probabilities_of(logits, config), uniforms)


def guide(logits: Tensor, scale: float) -> Tensor:
    """Return logits_u + s·(logits_c − logits_u) (b, ...), given logits (2b, ...): those of c, then those of u.

    A scale of 1 gives exactly those of c, and one of 0 exactly those of u.
    """
    conditional, unconditional = logits.chunk(2)
    if scale == 1:
        return conditional
    return unconditional + scale * (conditional - unconditional)


def probabilities_of(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Return the probabilities (..., K), not normalised, after temperature, top-k and top-p."""
    logits = logits if config.temperature == 1 else logits.to(widest(logits.device)) / config.temperature
    return top_k_top_p(torch.softmax(logits, -1), config.top_k, config.top_p)


def top_k_top_p(probabilities: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Set to 0 what top-k rules out, and then what top-p rules out of the rest: (..., K), not normalised.

    Among equally likely codes, the first ones stay.
    """
    if not top_k and top_p == 1:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    if top_k:
        ordered[..., top_k:] = 0
    if top_p < 1:
        likelier = ordered.cumsum(-1) - ordered
        ordered.masked_fill_(likelier >= top_p * ordered.sum(-1, keepdim=True), 0)
    return torch.zeros_like(probabilities).scatter_(-1, order, ordered)


def draw_codes(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Return the codes (...) at which the cumulative probability (..., K) passes u (...), normalised or not."""
    # summed in the widest type, so that rounding does not decide between K codes
    cumulative = probabilities.cumsum(-1, dtype=widest(probabilities.device))
    thresholds = uniforms[..., None] * cumulative[..., -1:]
    codes = torch.searchsorted(cumulative, thresholds, right=True).squeeze(-1)
    return codes.clamp_max(probabilities.shape[-1] - 1)
