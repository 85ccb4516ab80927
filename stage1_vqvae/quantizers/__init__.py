"""Vector quantizers: latents (b, D, *sites) → `Quantized(vectors, codes, loss)`, and `look_up(codes)` → vectors."""

from .base import Quantized, Quantizer
from .clustered import ClusteredGradientQuantizer, ClusteredQuantizer
from .ema import EMAQuantizer
from .gradient import GradientQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {
    "ema": EMAQuantizer,
    "gradient": GradientQuantizer,
    "clustered": ClusteredQuantizer,
    "clustered-gradient": ClusteredGradientQuantizer,
}

__all__ = [
    "QUANTIZERS",
    "ClusteredGradientQuantizer",
    "ClusteredQuantizer",
    "EMAQuantizer",
    "GradientQuantizer",
    "Quantized",
    "Quantizer",
]
