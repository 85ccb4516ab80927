"""PixelSNAIL, causal convolutions and attention, and its cached sampler."""
