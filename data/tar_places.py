"""Where tar shards are: paths and URLs, written as patterns. Nothing here imports torch."""

from __future__ import annotations

import glob
import re
from pathlib import Path, PurePosixPath

from codegrid.errors import InputError
from codegrid.file_names import natural_key
from codegrid.limits import short

ENDING = ".tar"
MAX_SHARDS = 100_000
BRACES = re.compile(r"\{([^{}]*)\}")
NUMBERS = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
WILD = re.compile(r"[*?\[]")
PROTOCOL = re.compile(r"(?i)(https?)://")
BESIDE = (".json", ".jsonl", ".txt", ".md", ".csv", ".tsv", ".idx", ".yaml", ".yml")  # files often found beside shards


def is_remote(place: str) -> bool:
    """Return whether a place is a URL."""
    return PROTOCOL.match(place) is not None


def are_shards(place: str) -> bool:
    """Return whether a place names tar shards: its ending is `.tar`, or it is a folder that holds nothing else."""
    path = path_of(place)
    if path.lower().endswith(ENDING) or BRACES.sub("", path).lower().endswith(ENDING):
        return not Path(place).expanduser().is_dir()
    return bool(place) and not is_remote(place) and bool(_in_folder(Path(place).expanduser()))


def find_shards(pattern: str) -> list[str]:
    """Return the paths or URLs that a pattern stands for.

    `{000..127}` stands for all numbers in the range, and `{a,b}` for each text, in the order in which they are written;
    `*`, `?` and `[...]` in a path match existing names, in natural order; a folder stands for its shards.

    Raises `InputError` if there are none, or too many.
    """
    found: list[str] = []
    for each in expand_braces(pattern):
        path = Path(each).expanduser()
        if is_remote(each) or path.is_file():
            found.append(each if is_remote(each) else str(path))
        elif path.is_dir():
            found += _in_folder(path)
        elif WILD.search(each):
            found += sorted(glob.glob(str(path), recursive=True), key=natural_key)
        else:
            raise InputError(f"no file {short(each)}: `data_root` or `dataset` must name existing tar shards")
    if not found:
        raise InputError(f"{short(pattern)} matches no file: give paths or URLs of tar shards, data-{{000..127}}.tar")
    return list(dict.fromkeys(found))


def expand_braces(pattern: str) -> list[str]:
    """Return the texts that a pattern with braces stands for, in order.

    >>> expand_braces("{train,val}-{08..10}.tar")[:4]
    ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar']
    """
    braces = next((found for found in BRACES.finditer(pattern) if _choices(found[1])), None)
    if braces is None:
        return [pattern]
    whole: list[str] = []
    for choice in _choices(braces[1]):
        whole += expand_braces(pattern[: braces.start()] + choice + pattern[braces.end() :])
        if len(whole) > MAX_SHARDS:
            raise InputError(f"{short(pattern)} stands for more than {MAX_SHARDS:,} shards: give fewer")
    return whole


def shard_name(place: str) -> str:
    """Return the name of a shard, without its folders and its ending."""
    name = PurePosixPath(path_of(place)).name
    return name[: -len(ENDING)] if name.lower().endswith(ENDING) else name


def path_of(place: str) -> str:
    """Return a path with forward slashes, or a URL without its query and fragment."""
    return re.split("[?#]", place)[0] if is_remote(place) else Path(place).as_posix()


def _choices(inside: str) -> list[str]:
    """Return the texts that braces stand for, given what is inside; none if they are just part of a name."""
    numbers = NUMBERS.fullmatch(inside)
    if numbers is None:
        return inside.split(",") if "," in inside else []
    first, last = map(int, numbers.groups())
    if abs(last - first) >= MAX_SHARDS:
        raise InputError(f"{{{inside}}} stands for more than {MAX_SHARDS:,} shards: give fewer")
    has_zeros = any(len(text) > 1 and text.startswith("0") for text in numbers.groups())
    width = max(map(len, numbers.groups())) if has_zeros else 1
    step = 1 if first <= last else -1
    return [f"{number:0{width}}" for number in range(first, last + step, step)]


def _in_folder(folder: Path) -> list[str]:
    """Return the shards in a folder; none if it holds folders or other files."""
    try:
        visible = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    except OSError:
        return []
    shards = [path for path in visible if path.suffix.lower() == ENDING and path.is_file()]
    others = [path for path in visible if path not in shards and path.suffix.lower() not in BESIDE]
    return sorted(map(str, shards), key=natural_key) if not others else []
