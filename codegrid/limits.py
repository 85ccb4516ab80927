"""Ranges of values: settings from a file are checked just like those that a user typed.

The range of a setting is written once, at its field: `steps: Annotated[int, Range(1, MAX_STEPS)]`. Without upper
limits, a few bytes of JSON could ask for terabytes, or for an hour of building layers.
"""

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import InputError

MAX_SIDE = 8192  # pixels of an image, or sites of a grid
MAX_LENGTH = 2**24  # samples of a wave, or sites of a grid with a single axis
MAX_ENTRIES = 2**24  # of a codebook
MAX_CLASSES = 1_000_000
MAX_WORDS = 2**20  # of a vocabulary
MAX_TEXT = 4096  # words of a text
MAX_VIEWS = 1000  # of an image
MAX_LAYERS = 1000
MAX_WIDTH = 2**16  # channels of a layer
MAX_KERNEL = 99  # sites
MAX_STEPS = 10**12
MAX_THREADS = 1024


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, or strictly between `above` and `below`."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def holds(self, value: float) -> bool:
        """Return whether a value is in the range."""
        is_finite = isinstance(value, int) or math.isfinite(value)  # a whole number may be too large for a float
        return is_finite and self.low <= value <= self.high and self.above < value < self.below

    def words(self, whole: bool) -> str:
        """Return the range in words, for `it must be ...`."""
        named = {"of at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        bounds = [f"{words} {bound:{',' if whole else 'g'}}" for words, bound in named.items() if math.isfinite(bound)]
        if whole and math.isfinite(self.low) and math.isfinite(self.high):
            bounds = [f"from {self.low:,} to {self.high:,}"]
        return " ".join(["a whole number" if whole else "a number", " and ".join(bounds)]).strip()


@dataclass(frozen=True)
class OneOf:
    """A choice of whole numbers, and its description: `a power of two: 1, 2, 4, 8`."""

    numbers: Sequence[int]
    meaning: str

    def holds(self, value: float) -> bool:
        """Return whether a value is one of the numbers."""
        return value in self.numbers

    def words(self, whole: bool) -> str:
        """Return the description, for `it must be ...`."""
        return self.meaning


@dataclass(frozen=True)
class AtStart:
    """Marks an option that only affects how training begins: a model that starts from another keeps the default."""


# settings used in several places
NumSamples = Annotated[int, Range(1, 10**8)]
BatchSize = Annotated[int, Range(1, 10**6)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
RejectKeep = Annotated[float, Range(0.001, 1)]  # at most 1,000 draws of each sample
REJECT_KEEP = 0.25  # by default


def check_fields(settings: Any) -> None:
    """Raise `InputError`, naming the field, if a field of a dataclass is not of its annotated type, or out of range.

    Nested dataclasses checked themselves when they were created.
    """
    kind = type(settings)
    hints = get_type_hints(kind, include_extras=True)
    for name, hint in ((field.name, hints[field.name]) for field in fields(kind)):
        check_value(name, getattr(settings, name), hint)


def check_value(name: str, value: Any, hint: Any, rules: Sequence[Any] = ()) -> None:
    """Raise `InputError` if a value, called `name`, does not match a type hint and its `Range` or similar rules."""
    while get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        rules = [*rules, *(rule for rule in more if hasattr(rule, "holds"))]
    origin, arms = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in arms:
            return
        others = [arm for arm in arms if arm is not NoneType]
        if len(others) == 1:
            check_value(name, value, others[0], rules)
    elif origin is Literal:
        check_name(name, value, arms)
    elif origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"`{name}` {short(value)}: it must be a list")
        for item in value:
            check_value(name, item, arms[0], rules)
    elif hint in (int, float):
        kinds = (int,) if hint is int else (int, float)
        rules = rules or [Range()]
        words = rules[0].words(hint is int)
        if type(value) not in kinds or not all(rule.holds(value) for rule in rules):
            of_numpy = "; write .item() behind a number of NumPy or torch" * hasattr(value, "item")
            raise InputError(f"`{name}` {short(value)}: it must be {words}{of_numpy}")
    elif hint in (str, bool) and type(value) is not hint:
        raise InputError(f"`{name}` {short(value)}: it must be {'a string' if hint is str else 'true or false'}")


def make_options(kind: Any, values: dict[str, Any], owner: str) -> Any:
    """Make an options dataclass, such as a quantizer's, from values by name.

    Args:
        kind: the dataclass.
        values: the options by name; a list becomes a tuple.
        owner: what the options belong to, for messages.

    Raises `InputError` if a name is not that of an option, or a value is out of range.
    """
    known = {field.name for field in fields(kind)}
    for name in values:
        if name not in known:
            raise InputError(f"`{name}`: {owner} has no such option; it has {', '.join(sorted(known)) or 'none'}")
    options = kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    check_fields(options)
    return options


def split_options(kind: Any, options: dict[str, Any], owner: str) -> tuple[Any, dict[str, Any]]:
    """Return the dataclass `kind`, made from the options that it has, and the other options, of its parts."""
    own = {field.name for field in fields(kind)}
    settings = make_options(kind, {name: value for name, value in options.items() if name in own}, owner)
    return settings, {name: value for name, value in options.items() if name not in own}


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """Raise `InputError` if `value` is not a whole number from `low` to `high`."""
    check_value(name, value, Annotated[int, Range(low, high)])


def check_sides(name: str, sides: Sequence[object]) -> None:
    """Raise `InputError` if a side of an image or grid is not a whole number in range; a single one may be longer."""
    for side in sides:
        check_whole(name, side, 1, MAX_SIDE if len(sides) > 1 else MAX_LENGTH)


def check_name(name: str, value: object, choices: Any) -> None:
    """Raise `InputError` if `value` is not one of the names `choices`."""
    if not isinstance(value, str | int | NoneType) or value not in choices:
        raise InputError(f"`{name}` {short(value)}: choose one of {', '.join(map(str, choices))}")


def is_list_of(value: object, kind: type) -> bool:
    """Return whether a value is a list of items of exactly this type: a bool is not an int here."""
    return isinstance(value, list) and all(type(item) is kind for item in value)


def short(value: object) -> str:
    """Return the repr of a value, shortened to fit into a message."""
    return reprlib.repr(value)
