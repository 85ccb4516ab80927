"""Entropy coding of codes, with priors as its models."""
