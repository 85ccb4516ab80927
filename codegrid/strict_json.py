"""JSON by the standard: infinities and NaN are neither written nor read."""

import json
import math
from typing import Any


def to_json(value: object, **options: Any) -> str:
    """Return a value as JSON, with null in place of infinities and NaN.

    Args:
        options: of `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_with_nulls(value), allow_nan=False, **options)


def parse_json(content: bytes | str) -> Any:
    """Parse JSON. Raises ValueError if it is not JSON, or holds an infinite number or NaN."""
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
        raise ValueError(f"{text} is not a number in JSON")
    return number
