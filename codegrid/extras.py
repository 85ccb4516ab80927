"""Packages that only some uses need."""

import importlib
from types import ModuleType

from .errors import InputError


def import_extra(module: str, use: str) -> ModuleType:
    """A module of the extra `hub`; `InputError` that says what `use` needs, and how to get it, where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(f'{use} needs the {package} package: install it with pip install -e ".[hub]"') from error
