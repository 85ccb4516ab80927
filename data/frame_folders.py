"""Videos as folders of frames: `ROOT/EPISODE/0001.png`, ..., with a table of the actions taken at them.

The table is `actions.csv`, with a column `action` of names or numbers and a row for each frame, in order: one in each
episode's folder, or one for all, in `ROOT`, with a column `episode`. A tenth of the episodes is held out, unless there
are folders for training and test.

Shapes: n frames.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from codegrid.errors import InputError, reason_of
from codegrid.file_names import natural_key, printable
from codegrid.files import read_plain

from .folder import FolderImages
from .found import Found
from .images import Size
from .listing import TEST, TRAIN
from .manifest import ACTIONS, EPISODE, FRAME
from .pictures import endings
from .splits import split_indices
from .videos import MAX_ACTIONS, numbered

TABLE = "actions.csv"
MAX_BYTES = 2**28  # of a table
COLUMNS = ("episode", "action")


class Episode(NamedTuple):
    """Frames that follow each other."""

    name: str
    frames: list[Path]
    actions: list[str]  # one for each frame; empty if they are unknown


def load_frames(root: Path | None, split: str, size: Size | None, channels: int | None) -> FolderImages:
    """Find the frames of all episodes of a part below `root`; none is decoded yet.

    Raises `InputError` if there are none, or a table of actions does not match its frames.
    """
    if root is None or not root.is_dir():
        raise InputError(f"no folder {root or 'is given'}: `data_root` must hold a folder of frames for each episode")
    parts = {part: find_episodes(root / part) for part in (TRAIN, TEST) if (root / part).is_dir()}
    if parts.keys() != {TRAIN, TEST}:
        every = find_episodes(root)
        places = {part: split_indices(None, len(every), part) for part in (TRAIN, TEST)}
        parts = {part: [every[place] for place in of_part.tolist()] for part, of_part in places.items()}
    names = name_actions(root, [episode for part in (TRAIN, TEST) for episode in parts[part]])
    chosen = parts[split] if split in parts else parts[TRAIN] + parts[TEST]
    paths = [path for episode in chosen for path in episode.frames]
    count = {part: sum(len(episode.frames) for episode in episodes) for part, episodes in parts.items()}
    others = {} if split == "all" else {part: frames for part, frames in count.items() if part != split}
    notes = (f"{len(chosen)} episode{'s' * (len(chosen) != 1)}", *[f"actions: {', '.join(names[:8])}"] * bool(names))
    found = Found(len(paths), (), str(root), split, others, {}, notes, "frame")
    images = FolderImages(root, paths, None, [], size, channels, found)
    images.actions, images.columns = names, as_columns(chosen, names)
    return images


def find_episodes(root: Path) -> list[Episode]:
    """Return the episodes whose folders are in `root`, in natural order.

    Raises `InputError` if there are none, or a table does not match their frames.
    """
    folders = sorted((path for path in root.iterdir() if path.is_dir() and path.name[0] != "."), key=_by_name)
    frames = {folder.name: list_frames(folder) for folder in folders}
    frames = {name: paths for name, paths in frames.items() if paths}
    if not frames:
        raise InputError(f"`data_root` {root}: no folder in it holds frames: give each episode a folder of pictures")
    taken = read_actions(root / TABLE, frames) if (root / TABLE).is_file() else {}
    for name in frames:
        own = root / name / TABLE
        if not (root / TABLE).is_file() and own.is_file():
            taken |= read_actions(own, {name: frames[name]})
    if taken and (lacking := [name for name in frames if name not in taken]):
        words = f"actions for {printable(next(iter(taken)))}, but none for {printable(lacking[0])}"
        raise InputError(f"{root} has {words}: give each episode its {TABLE}, or none")
    return [Episode(name, paths, taken.get(name, [])) for name, paths in frames.items()]


def list_frames(folder: Path) -> list[Path]:
    """Return the pictures in a folder, in natural order."""
    known = endings()
    found = (path for path in folder.iterdir() if path.suffix.lower() in known and path.name[0] != ".")
    return sorted(found, key=_by_name)


def read_actions(table: Path, frames: dict[str, list[Path]]) -> dict[str, list[str]]:
    """Return the actions in a table by episode, one for each frame; a table of one episode need not name it.

    Raises `InputError` if it cannot be read, or has not as many actions as there are frames.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_plain(table, MAX_BYTES).decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} is not a table in UTF-8 ({reason_of(error)}): save it again") from error
    of_episode, of_action = COLUMNS
    needed = COLUMNS if len(frames) > 1 else (of_action,)
    taken: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 2):
        if not all(isinstance(row.get(name), str) and str(row[name]).strip() for name in needed):
            raise InputError(f"{table}, row {number}: it needs {' and '.join(needed)}, named in the first row")
        episode = row[of_episode].strip() if len(frames) > 1 else next(iter(frames))
        taken.setdefault(episode, []).append(row[of_action].strip())
    for name in frames:
        if len(taken.get(name, [])) != len(frames[name]):
            words = f"{len(taken.get(name, []))} actions for {len(frames[name])} frames of {printable(name)}"
            raise InputError(f"{table} has {words}: give each frame a row, in order")
    if unknown := [name for name in taken if name not in frames]:
        raise InputError(f"{table} names the episode {printable(unknown[0])}, but there is no such folder of frames")
    return taken


def name_actions(root: Path, episodes: Sequence[Episode]) -> tuple[str, ...]:
    """Return the names of all actions in natural order; of numbers, all from 0 to the highest.

    Raises `InputError` if there are too many.
    """
    written = {action for episode in episodes for action in episode.actions}
    if written and all(action.isascii() and action.isdigit() and len(action) < 9 for action in written):
        names = [str(number) for number in range(max(map(int, written)) + 1)]
        written = set(map(str, map(int, written)))
    else:
        names = sorted(written, key=natural_key)
    if len(names) > MAX_ACTIONS:
        raise InputError(f"{root} has {len(names)} actions: {MAX_ACTIONS} at most, named or numbered from 0")
    return tuple(names)


def as_columns(episodes: Sequence[Episode], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the columns (n,) of the frames of episodes, one after the other."""
    lengths = [len(episode.frames) for episode in episodes]
    numbers = torch.from_numpy(np.repeat(np.arange(len(episodes)), lengths))
    columns = {EPISODE: numbers, FRAME: numbered(numbers)}
    if names:
        places = {name: place for place, name in enumerate(names)}
        taken = [places[name] if name in places else int(name) for episode in episodes for name in episode.actions]
        columns[ACTIONS] = torch.tensor(taken, dtype=torch.int64)
    return columns


def _by_name(path: Path) -> tuple[object, str]:
    return natural_key(path.name)
