"""What a value may be: a configuration that came with a file is as little to be believed as one that was typed.

Without upper limits a few bytes of JSON would ask for terabytes, or for an hour of building layers.
"""

import math
import os
import reprlib

LARGEST_SIDE = 8192  # pixels of an image that a model works on
MOST_ENTRIES = 2**24  # of a codebook
MOST_CLASSES = 1_000_000
MOST_LAYERS = 1000
WIDEST = 2**16  # channels of a layer


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """Raise ValueError where `value` is not a whole number from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} {short(value)}: it must be a whole number from {low} to {high}")


def check_number(name: str, value: object, low: float = 0.0, below: float = math.inf) -> None:
    """Raise ValueError where `value` is not a number of at least `low` and below `below`."""
    if type(value) not in (int, float) or not low <= value < below:  # NaN fails every comparison
        raise ValueError(f"{name} {short(value)}: it must be a number of at least {low:g} and below {below:g}")


def check_name(name: str, value: object, choices: object) -> None:
    """Raise ValueError where `value` is not a string among `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} {short(value)}: choose one of {', '.join(choices)}")


def is_list_of(value: object, kind: type) -> bool:
    """Whether a value is a list whose items are all of this very type: no bool is taken for an int."""
    return isinstance(value, list) and all(type(item) is kind for item in value)


def short(value: object) -> str:
    """A value as Python writes it, cut to what fits into a message."""
    return reprlib.repr(value)


def machine_memory() -> int:
    """Bytes of memory that this machine has; where it cannot tell, a terabyte."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 2**40
