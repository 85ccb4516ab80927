"""From a site's logits to its code: guidance, temperature, top-k, top-p, then one draw.

Shapes: b batch, K num_embeddings.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Controls:
    """How codes are drawn from logits, in the order in which it is applied.

    Args:
        guidance_scale: s of logits_u + s·(logits_c − logits_u), where u knows no label and c does; 1: no guidance,
            above 1 more of what makes the class, 0 as if there were no label.
        temperature: divides the logits; 0 takes the likeliest code.
        top_k: only so many codes, the likeliest, can be drawn; None: all.
        top_p: only the fewest codes can be drawn that have this probability together; 1: all.

    Raises ValueError where one is out of its range.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name, fits, words in (
            ("guidance_scale", math.isfinite(self.guidance_scale), "a number"),
            ("temperature", 0 <= self.temperature < math.inf, "a number of at least 0"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not fits:
                raise ValueError(f"{name} {getattr(self, name)}: it must be {words}")

    @property
    def guided(self) -> bool:
        """Whether two sets of logits are needed."""
        return self.guidance_scale != 1


def choose_codes(logits: torch.Tensor, uniforms: torch.Tensor, controls: Controls) -> torch.Tensor:
    """The code at which the cumulative probability passes u: logits (b, K), u (b,) in [0, 1) → codes (b,) int64.

    With guidance logits are (2b, K): first those with labels, then those without.
    """
    if controls.guided:
        with_label, without = logits.chunk(2)
        logits = without + controls.guidance_scale * (with_label - without)
    if controls.temperature == 0:
        return logits.argmax(1)
    probabilities = torch.softmax(logits if controls.temperature == 1 else logits.double() / controls.temperature, 1)
    # summed in float64, so that rounding does not decide between K codes
    cumulative = keep_likeliest(probabilities, controls).cumsum(1, dtype=torch.float64)
    thresholds = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, thresholds, right=True).squeeze(1).clamp_max(logits.shape[1] - 1)


def keep_likeliest(probabilities: torch.Tensor, controls: Controls) -> torch.Tensor:
    """Set to 0 what top-k, and then top-p of what is left, rule out: (b, K) → (b, K), not normalised.

    Of codes that are equally likely the first ones stay.
    """
    if controls.top_k is None and controls.top_p == 1:
        return probabilities
    ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
    if controls.top_k is not None:
        ordered[:, controls.top_k :] = 0
    if controls.top_p < 1:
        likelier = ordered.cumsum(1) - ordered
        ordered[likelier >= controls.top_p * ordered.sum(1, keepdim=True)] = 0
    return torch.zeros_like(probabilities).scatter_(1, order, ordered)
