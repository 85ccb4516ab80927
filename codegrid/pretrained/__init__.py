"""Trained models inside the package: `codegrid:digits` names a tokenizer and its prior, wherever a folder does.

Each has a README.md with its data, their licence, its recipe and its figures; the recipes are in
`codegrid.recipes.pretrained`.
"""

from pathlib import Path, PurePosixPath

from codegrid.errors import InputError
from codegrid.limits import short

PREFIX = "codegrid:"
PRETRAINED = ("digits", "emoji", "cifar10")


def find_pretrained(source: str) -> Path:
    """Return the folder that `codegrid:NAME`, or a folder in it such as `codegrid:NAME/tokenizer`, stands for.

    Raises `InputError` if no models of this name come with the package.
    """
    name, *inner = PurePosixPath(source.removeprefix(PREFIX)).parts or ("",)
    check_pretrained(name, PREFIX)
    return Path(__file__).parent.joinpath(name, *(part for part in inner if part != ".."))


def check_pretrained(name: str, said: str = "`pretrained` ") -> None:
    """Raise `InputError`, with `said` before the name, if no models of this name come with the package."""
    if name not in PRETRAINED:
        words = f"no models of this name come with the package: choose one of {', '.join(PRETRAINED)}"
        raise InputError(f"{said}{short(name)[1:-1]}: {words}")
