"""Stage 1: the tokenizer, signal → latents → codes → signal."""
