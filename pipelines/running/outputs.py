"""Output folders: choosing one if none was named, and emptying one that an earlier run left."""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TypeVar

from codegrid.command import COMMANDS
from codegrid.data.digests import DIGESTS
from codegrid.data.image_files import NUMBER
from codegrid.data.manifest import MANIFEST
from codegrid.errors import InputError
from codegrid.files import CLASSIFIER, SETTINGS_FILE, STAGING, is_below
from codegrid.limits import short
from codegrid.locks import LOCK, OWNER, hold
from codegrid.tensors import read_json
from codegrid.usable import AUTOENCODER, PARTS

from .settings import Command, Leaves

RUN_FILE = "run.json"
HIDDEN = {LOCK, OWNER, STAGING, DIGESTS, ".DS_Store"}
# files of runs that have not finished, or are older than the record of the files that a finished one has written
KNOWN = re.compile(
    r"README\.md|settings\.yaml|metrics\.jsonl"
    r"|(config|doctor|files|futures|manifest|metrics|model|prompts|ranking|run|tokenizer)\.json"
    r"|(codes-\d{5,}|model|tables)\.safetensors|(codes|futures)\.npz|codes\.parquet|future-\d+\.(gif|mp4|png)"
    r"|(completions|images|samples|sounds)(-\d{5,})?\.(npz|png)"
    r"|(codebook|codes|comparison|curves|grids|histogram|places|reconstructions|usage)\.png"
)
SUFFIXES = {".json", ".jsonl", ".yaml", ".md", ".png", ".npz", ".safetensors"}
FOLDERS = {
    "state",
    "best",
    "last",
    "pictures",
    CLASSIFIER,
    AUTOENCODER,
    *PARTS,
}  # of files with these suffixes, and folders of them
PICTURES = ("samples", "completions", "images")  # folders of numbered pictures
NUMBERED = {*PICTURES, "sounds"}
LOGS = "logs"  # written by other packages
MOST = 10_000  # numbered folders

Opened = TypeVar("Opened")


def open_output(settings: Leaves, open_folder: Callable[[Path], Opened]) -> Opened:
    """Return the result of `open_folder` for `output` or, if it was left out, for the first folder it does not refuse.

    It tries samples, samples-2 and so on below `settings.home`.
    """
    settings.check_output()
    if settings.output:
        return open_folder(Path(settings.output))
    first = settings.home / settings.place
    for number in count(1):
        try:
            return open_folder(first if number == 1 else first.with_name(f"{first.name}-{number}"))
        except InputError:
            if number == MOST:
                raise
    raise AssertionError


def visible(folder: Path) -> set[str]:
    """Return the names in a folder, without the hidden ones."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()


def _check_inputs(folder: Path, settings: Command) -> None:
    """Raise `InputError` if a setting names something in a folder that `overwrite` is about to empty."""
    for name, value in asdict(settings).items():
        for each in value if isinstance(value, tuple | list) else [value]:
            is_input = isinstance(each, str) and each and name not in ("output", "run") and os.path.exists(each)
            if is_input and is_below(each, folder):
                raise InputError(f"`overwrite` would empty {folder}, where `{name}` is: choose another `output`")


def clear_output(folder: Path, settings: Command) -> None:
    """Remove what an earlier run left in a folder, and lock it against other processes.

    Raises `InputError`, and removes nothing, if the folder is not a run's, or holds anything else as well, or one of
    the things that the settings name.
    """
    folder = folder.resolve()
    if not visible(folder):
        return
    _check_inputs(folder, settings)
    _check_own(folder)
    hold(folder)
    _check_own(folder)  # again: something may have appeared before the lock was taken
    marks = {RUN_FILE, MANIFEST, SETTINGS_FILE}
    for path in sorted(folder.iterdir(), key=lambda path: path.name in marks):  # marks last: if killed, this can rerun
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (LOCK, OWNER):
            path.unlink()


def _check_own(folder: Path) -> None:
    """Raise `InputError` if a folder holds anything that no run leaves there."""
    if not _is_of_a_run(folder):
        raise InputError(f"{folder} is not a run's folder, and `overwrite` empties no other: choose another `output`")
    recorded = _recorded(folder)
    for path in folder.rglob("*"):
        inside = path.relative_to(folder).parts
        if not _is_ours(path, inside, recorded):
            raise InputError(
                f"{folder} also holds {short('/'.join(inside))}, which no run leaves there: move that elsewhere, or "
                "choose another `output`"
            )


def _recorded(folder: Path) -> set[str]:
    """Return the first parts of the paths of all files that a finished run records to have written."""
    try:
        files = read_json(folder / RUN_FILE).get("files")
    except (InputError, OSError):
        return set()
    return {name.partition("/")[0] for name in files} if isinstance(files, dict) else set()


def _is_ours(path: Path, inside: tuple[str, ...], recorded: set[str]) -> bool:
    """Return whether runs leave such a file or folder, or this one has recorded it.

    `inside` is its path below the run's folder.
    """
    if path.is_symlink():
        return False
    if inside[0] in HIDDEN or inside[0] == LOGS:
        return True
    if inside[0] in NUMBERED:
        return path.is_dir() or NUMBER.fullmatch(path.name) is not None
    if path.is_dir() or len(inside) > 1:
        return inside[0] in FOLDERS | recorded and (path.is_dir() or path.suffix in SUFFIXES)
    return inside[0] in recorded or KNOWN.fullmatch(inside[0]) is not None


def _is_of_a_run(folder: Path) -> bool:
    """Return whether run.json, a manifest or settings.yaml marks a folder as a run's."""
    try:
        if (folder / RUN_FILE).is_file():
            return read_json(folder / RUN_FILE).get("command") in COMMANDS
        if (folder / MANIFEST).is_file():
            return str(read_json(folder / MANIFEST).get("format")).startswith("codegrid codes")
        with (folder / SETTINGS_FILE).open(encoding="utf-8") as file:
            return file.readline(100).startswith("# codegrid ")
    except (InputError, OSError, UnicodeDecodeError):
        return False
