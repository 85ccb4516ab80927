"""The gated PixelCNN and its cached sampler."""
