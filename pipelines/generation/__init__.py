"""Encoding, sampling and decoding with trained models."""
