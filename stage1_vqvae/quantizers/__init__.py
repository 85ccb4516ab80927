"""Vector quantizers: latents (b, D, *sites) → `Quantized(vectors, codes, loss)`, and `look_up(codes)` → vectors."""

from .base import Quantized, Quantizer
from .ema import EMAQuantizer
from .gradient import GradientQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {
    "ema": EMAQuantizer,
    "gradient": GradientQuantizer,
}

__all__ = ["QUANTIZERS", "EMAQuantizer", "GradientQuantizer", "Quantized", "Quantizer"]
