"""The figures of a tokenizer and a prior."""
