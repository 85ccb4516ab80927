"""Tokenizers of this project in the forms of other libraries."""
