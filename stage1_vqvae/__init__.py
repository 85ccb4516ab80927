"""Stage 1: the tokenizer. A signal → latents → codes → the signal."""
