"""Checks of settings that the flag parser cannot make."""

import math
from collections.abc import Callable
from typing import Any

from storage.errors import InputError

# What a setting of this name must be, wherever it occurs: a test, and the test in words.
RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(
        (
            "steps",
            "batch_size",
            "num_samples",
            "save_every",
            "num_embeddings",
            "embedding_dim",
            "channels",
            "num_layers",
            "accumulate",
            "top_k",
            "shard_size",
            "keep_rows",
            "num_completions",
        ),
        (lambda value: value >= 1, "at least 1"),
    ),
    "hidden_channels": (lambda value: value >= 2, "at least 2"),
    "downsampling": (lambda value: value >= 1 and value & (value - 1) == 0, "a power of two: 1, 2, 4, 8, ..."),
    **dict.fromkeys(("lr", "max_norm"), (lambda value: 0 < value < math.inf, "a positive number")),
    **dict.fromkeys(("dropout", "label_dropout"), (lambda value: 0 <= value < 1, "at least 0 and below 1")),
    **dict.fromkeys(("decay", "ema_decay"), (lambda value: 0 < value < 1, "between 0 and 1")),
    "crop": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "seed": (lambda value: 0 <= value < 2**63, "at least 0 and below 2 to the power of 63"),
    "revival_threshold": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    **dict.fromkeys(
        ("commitment_cost", "temperature"), (lambda value: 0 <= value < math.inf, "a number of at least 0")
    ),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "guidance_scale": (math.isfinite, "a number"),
    **dict.fromkeys(("num_workers", "kmeans_steps", "shift"), (lambda value: value >= 0, "at least 0")),
}


def check_ranges(settings: dict[str, Any]) -> None:
    """Raise InputError where a setting, by name, is out of its range."""
    for name, value in settings.items():
        fits, words = RULES.get(name, (lambda value: True, ""))
        if value is not None and not fits(value):
            raise InputError(f"--{name.replace('_', '-')} {value}: it must be {words}")
