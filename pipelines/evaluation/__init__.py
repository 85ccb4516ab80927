"""Metrics of a tokenizer, and of priors over its codes: the machinery of `codegrid evaluate`."""
