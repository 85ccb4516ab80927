"""Files that only some model folders have beside config and weights, and that the outputs of these models depend on."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .errors import InputError
from .files import read_plain

TEXT_TOKENIZER = "tokenizer.json"  # of a prior that is asked in words
EXTRAS = (TEXT_TOKENIZER,)
MAX_BYTES = 2**26
NO_FILES: Mapping[str, bytes] = MappingProxyType({})


def digests_of_files(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 of each file by name."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def write_files(folder: Path, files: Mapping[str, bytes]) -> dict[str, str]:
    """Write files into a folder, and return the SHA-256 of each by name."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return digests_of_files(files)


def read_files(folder: Path, checksums: Mapping[str, Any]) -> dict[str, bytes]:
    """Return, by name, those of these files that a model folder must hold, by the checksums in its config.

    Raises `InputError` if one is missing or damaged.
    """
    found = {}
    for name in (name for name in EXTRAS if name in checksums):
        path = folder / name
        if not path.is_file():
            raise InputError(f"{folder} is incomplete: it holds no {name}; train or copy it again")
        found[name] = read_plain(path, MAX_BYTES)
        if digests_of_files(found)[name] != checksums[name]:
            raise InputError(f"{path} is damaged (its SHA-256 is not the recorded one): copy or make it again")
    return found
