"""The gate of the gated PixelCNN."""

import torch


def gate(x: torch.Tensor) -> torch.Tensor:
    """tanh(first half of the channels) ⊙ σ(second half): (b, 2c, ...) → (b, c, ...)."""
    signal, opening = x.chunk(2, dim=1)
    return torch.tanh(signal) * torch.sigmoid(opening)
