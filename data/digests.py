"""Records of the files that a run has finished: `.digests.json` in its folder holds the SHA-256 of each.

When a stopped run continues, it writes again those that are missing there or were changed since.
"""

from pathlib import Path

from codegrid.errors import InputError
from codegrid.files import write_folder, write_json
from codegrid.tensors import digest_of_file, read_json

DIGESTS = ".digests.json"


def unwritten(folder: str | Path, files: dict[str, range]) -> dict[str, range]:
    """Return the files, by name, that are missing from the folder, unfinished, or changed since a run wrote them."""
    digests = read_digests(folder)
    paths = {name: Path(folder) / name for name in files if name in digests}
    whole = {name for name, path in paths.items() if path.is_file() and digest_of_file(path) == digests[name]}
    return {name: numbers for name, numbers in files.items() if name not in whole}


def read_digests(folder: str | Path) -> dict[str, str]:
    """Return the SHA-256 of each finished file, by name; empty if there is no readable record."""
    try:
        return read_json(Path(folder) / DIGESTS)
    except (InputError, OSError):
        return {}


def write_digests(folder: str | Path, digests: dict[str, str]) -> None:
    """Write the SHA-256 of all finished files."""
    with write_folder(folder, index=DIGESTS) as staging:
        write_json(staging / DIGESTS, digests)
