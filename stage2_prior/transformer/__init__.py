"""Transformers over codes: their layers, and the causal transformer with its cached sampler."""
