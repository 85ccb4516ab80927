"""Stage 1: the tokenizer. image → latents → codes → image."""

from .tokenizer import VQVAE

__all__ = ["VQVAE"]
