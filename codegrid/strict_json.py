"""JSON as the standard has it: no number that is infinite, or not a number, is written or read."""

import json
import math
from typing import Any


def to_json(value: object, **options: Any) -> str:
    """Return a value as JSON, with null in the place of numbers that JSON does not have.

    Args:
        options: of `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_with_nulls(value), allow_nan=False, **options)


def parse_json(content: bytes | str) -> Any:
    """Return the value of JSON. Raises ValueError where it is not JSON, or a number is infinite or not a number."""
    return json.loads(content, parse_float=_finite, parse_constant=_finite)


def _with_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_nulls(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a number of JSON")
    return number
