"""Checks of settings that the flag parser cannot make."""

import math
from collections.abc import Callable
from typing import Any

from codegrid.errors import InputError
from codegrid.limits import LARGEST_SIDE, MOST_ENTRIES, MOST_LAYERS, WIDEST

Rule = tuple[Callable[[float], bool], str]


def _between(low: int, high: int) -> Rule:
    return (lambda value: low <= value <= high), f"a whole number from {low} to {high:,}"


# What a setting of this name must be, wherever it occurs: a test, and the test in words. Without an upper limit a slip
# of the finger would ask for more memory than there is.
RULES: dict[str, Rule] = {
    **dict.fromkeys(("steps", "save_every", "shard_size", "top_k"), _between(1, 10**12)),
    **dict.fromkeys(("num_samples", "num_completions"), _between(1, 10**8)),
    **dict.fromkeys(("batch_size", "accumulate"), _between(1, 10**6)),
    **dict.fromkeys(("embedding_dim", "channels"), _between(1, WIDEST)),
    "num_embeddings": _between(1, MOST_ENTRIES),
    "num_layers": _between(1, MOST_LAYERS),
    "keep_rows": _between(1, LARGEST_SIDE),
    "hidden_channels": _between(2, WIDEST),
    "downsampling": (
        lambda value: 1 <= value <= LARGEST_SIDE and value & (value - 1) == 0,
        f"a power of two: 1, 2, 4, 8, ... {LARGEST_SIDE}",
    ),
    **dict.fromkeys(("lr", "max_norm"), (lambda value: 0 < value < math.inf, "a positive number")),
    **dict.fromkeys(("dropout", "label_dropout"), (lambda value: 0 <= value < 1, "at least 0 and below 1")),
    "decay": (lambda value: 1e-6 <= value < 1, "at least 0.000001 and below 1"),
    "ema_decay": (lambda value: 0 < value < 1, "between 0 and 1"),
    "crop": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "seed": (lambda value: 0 <= value < 2**63, "at least 0 and below 2 to the power of 63"),
    "revival_threshold": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    **dict.fromkeys(
        ("commitment_cost", "temperature"), (lambda value: 0 <= value < math.inf, "a number of at least 0")
    ),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "guidance_scale": (math.isfinite, "a number"),
    "num_workers": _between(0, 256),
    "kmeans_steps": _between(0, 2**31),
    "shift": _between(0, LARGEST_SIDE),
    "port": _between(1, 65535),
}


def check_ranges(settings: dict[str, Any]) -> None:
    """Raise InputError where a setting, by name, is out of its range."""
    for name, value in settings.items():
        fits, words = RULES.get(name, (lambda value: True, ""))
        if value is not None and not fits(value):
            raise InputError(f"--{name.replace('_', '-')} {value}: it must be {words}")
