"""The source of a checkpoint: found by the names of its tensors."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from codegrid.errors import InputError

from .building import Source
from .checkpoint import Checkpoint
from .names import SOURCES


def find_source(name: str) -> Source:
    """Return a source by its name. Raises `InputError` if there is none."""
    if name not in SOURCES:
        raise InputError(f"`source` {name!r}: choose one of {', '.join(SOURCES)}")
    source: Source = import_module(f"{__package__}.{SOURCES[name]}").SOURCE
    return source


def recognise(checkpoint: Checkpoint, name: str = "") -> tuple[str, Source, Checkpoint]:
    """Return the source of a checkpoint, and that part of it that the source knows.

    Args:
        name: the source, if it is known.

    Raises `InputError`, with the keys that were looked for, if no source knows it.
    """
    names = [name] if name else list(SOURCES)
    for each in names:
        source = find_source(each)
        for view in checkpoint.views():
            if all(key in source.look(view).tensors for key in source.keys):
                return each, source, view
    keys = find_source(name).keys if name else [f"{find_source(each).keys[0]} ({each})" for each in names]
    held = _some(checkpoint.tensors)
    raise InputError(
        f"{checkpoint.path} is not a checkpoint of a known project: it holds {held}, not {', '.join(keys)}"
    )


def _some(tensors: dict[str, Any]) -> str:
    return f"{len(tensors):,} tensors, such as {', '.join(name[:40] for name in list(tensors)[:2])}"
