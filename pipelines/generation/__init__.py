"""Encoding, sampling, decoding: both stages put to use."""
