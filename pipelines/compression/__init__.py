"""Compression: images or codes into a file, and back."""
