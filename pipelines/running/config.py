"""Settings as a file in YAML, TOML or JSON: each run leaves one, and `--config` reads it.

Nothing here imports torch.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from codegrid.errors import InputError, reason_of
from codegrid.files import SETTINGS_FILE
from codegrid.limits import check_value, short

from .options import bare_type, resolve_options
from .settings import Command, Training

TOML = "tomllib:loads" if sys.version_info >= (3, 11) else "tomli:loads"
READERS = {".yaml": "yaml:safe_load", ".yml": "yaml:safe_load", ".toml": TOML, ".json": "json:loads"}
NOT_SAVED = ("options", "overwrite", "dry_run", "quiet", "verbose", "json")  # they do not affect the results


def read_config(path: str) -> dict[str, Any]:
    """Return the settings in a .yaml, .yml, .toml or .json file, by name.

    Raises `InputError` if it cannot be read, or does not map names to values.
    """
    file = Path(path)
    if file.suffix not in READERS:
        raise InputError(f"`config` {path}: give a file that ends in {', '.join(READERS)}")
    module, _, function = READERS[file.suffix].partition(":")
    try:
        values = getattr(import_module(module), function)(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"`config` {path}: {error.strerror or error}: give a file of settings") from error
    except Exception as error:  # each reader raises its own types
        raise InputError(f"`config` {path}: it cannot be read ({reason_of(error)}): correct it") from error
    values = {} if values is None else values  # an empty YAML file
    if not isinstance(values, dict):
        raise InputError(f"`config` {path}: it must map names of settings to values, as `steps: 1000` does")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def check_config(path: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a file, converted to the types of their settings.

    Raises `InputError`, naming the file, if there is no such setting, or a value is out of its range.
    """
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            close = get_close_matches(name, hints, n=1)
            meant = f"did you mean {close[0]}?" if close else "the settings are named as the flags that --help lists"
            raise InputError(f"{path}: there is no setting {short(name)}: {meant}")
        checked[name] = _as_typed(value, hints[name])
        try:
            check_value(name, checked[name], hints[name])
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return checked


def describe_settings(settings: Command, command: str, output: Path) -> str:
    """Return all settings of a run as YAML, including the options of its model."""
    values = {name: value for name, value in asdict(settings).items() if name not in NOT_SAVED}
    values["output"] = str(output)
    if isinstance(settings, Training):
        values |= resolve_options(settings)
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    text = import_module("yaml").safe_dump(plain, sort_keys=False, allow_unicode=True)
    return f"# codegrid {command} --config {SETTINGS_FILE}\n{text}"


def _as_typed(value: Any, hint: Any) -> Any:
    """Convert a value to its type: one value to a list, a number to a name, and YAML's string `1e-3` to a number."""
    kind, many = bare_type(hint)
    if value is None:
        return None
    if many:
        return tuple(_as_typed(item, kind) for item in (value if isinstance(value, list) else [value]))
    if kind is str and type(value) in (int, float):
        return str(value)
    if kind is float and type(value) in (int, str):
        try:
            return float(value)
        except (ValueError, OverflowError):
            return value
    return value
