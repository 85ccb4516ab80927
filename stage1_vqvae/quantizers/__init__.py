"""Quantizers: latents (b, D, *sites) → codes → vectors. Each is built from keywords: `QUANTIZERS["ema"](decay=0.9)`."""

from codegrid.registry import TABLES

QUANTIZERS = TABLES["quantizer"]  # name → class, imported when it is first looked up

__all__ = ["QUANTIZERS"]
