"""Videos as folders of frames, `ROOT/EPISODE/0001.png`, ..., or as files, `ROOT/EPISODE.mp4`, with tables of actions.

A table is `actions.csv`, with a column `action` of names or numbers and a row for each frame, in order: one in each
episode's folder, or `EPISODE.csv` beside its file, or one for all, in `ROOT`, with a column `episode`. A tenth of the
episodes is held out, unless there are folders for training and test.

Shapes: n frames, c channels, H W image.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from codegrid.budget import check_memory
from codegrid.errors import InputError, reason_of
from codegrid.file_names import natural_key, printable
from codegrid.files import read_plain
from codegrid.progress import progress_bar

from .folder import NAMED, FolderImages
from .found import Found
from .images import ImageDataset, Size
from .listing import TEST, TRAIN
from .manifest import ACTIONS, EPISODE, FRAME
from .pictures import endings
from .splits import split_indices
from .video_files import ENDINGS, UnreadableVideo, read_video
from .videos import MAX_ACTIONS, numbered

TABLE = "actions.csv"
MAX_BYTES = 2**28  # of a table
COLUMNS = ("episode", "action")


class Episode(NamedTuple):
    """Frames that follow each other."""

    name: str
    frames: Any  # paths of pictures, or images (n, c, H, W) uint8
    actions: list[str]  # one for each frame; empty if they are unknown


class Form(NamedTuple):
    """How the frames of video files are wanted."""

    size: Size | None = None
    channels: int | None = None
    skip_unreadable: bool = False


def load_frames(
    root: Path | None, split: str, size: Size | None, channels: int | None, skip_unreadable: bool = False
) -> FolderImages | ImageDataset:
    """Return the frames of all episodes of a part below `root`: pictures are not decoded yet, video files are.

    Raises `InputError` if there are none, a file cannot be read, or a table of actions does not match its frames.
    """
    if root is None or not root.is_dir():
        words = "`data_root` must hold a folder of frames, or a video file, for each episode"
        raise InputError(f"no folder {root or 'is given'}: {words}")
    form, left_out = Form(size, channels, skip_unreadable), dict[str, Counter[str]]()
    parts = {part: find_episodes(root / part, form, left_out) for part in (TRAIN, TEST) if (root / part).is_dir()}
    if parts.keys() == {TRAIN, TEST} and (root / TABLE).is_file():
        raise InputError(f"{root / TABLE} is beside the folders for training and test: put a table into each of them")
    if parts.keys() != {TRAIN, TEST}:
        every = find_episodes(root, form, left_out)
        places = {part: split_indices(None, len(every), part) for part in (TRAIN, TEST)}
        parts = {part: [every[place] for place in of_part.tolist()] for part, of_part in places.items()}
    names = name_actions(root, [episode for part in (TRAIN, TEST) for episode in parts[part]])
    chosen = parts[split] if split in parts else parts[TRAIN] + parts[TEST]
    count = {part: sum(len(episode.frames) for episode in episodes) for part, episodes in parts.items()}
    others = {} if split == "all" else {part: frames for part, frames in count.items() if part != split}
    notes = (f"{len(chosen)} episode{'s' * (len(chosen) != 1)}", *[f"actions: {', '.join(names[:8])}"] * bool(names))
    columns = as_columns(chosen, names)
    found = Found(len(columns[FRAME]), (), str(root), split, others, left_out, notes, "frame")
    images: FolderImages | ImageDataset
    if any(isinstance(episode.frames, torch.Tensor) for episode in chosen):
        images = _joined(root, chosen, found)
    else:
        paths = [path for episode in chosen for path in episode.frames]
        images = FolderImages(root, paths, None, [], size, channels, found)
    images.actions, images.columns = names, columns
    return images


def _joined(root: Path, episodes: Sequence[Episode], found: Found) -> ImageDataset:
    """Return the images of episodes of one size, one after the other."""
    first = episodes[0]
    for episode in episodes:
        if not isinstance(episode.frames, torch.Tensor) or not isinstance(first.frames, torch.Tensor):
            raise InputError(f"{root} has video files in one part, and folders of frames in the other: give one kind")
        if episode.frames.shape[1:] != first.frames.shape[1:]:
            own, other = ("×".join(map(str, one.frames.shape[2:])) for one in (episode, first))
            words = f"{printable(episode.name)} is {own}, {printable(first.name)} is {other}"
            raise InputError(f"{root}: {words}: give `image_size` to bring them to one size")
    files = [f"{printable(episode.name)}/{frame:05}" for episode in episodes for frame in range(len(episode.frames))]
    return ImageDataset(torch.cat([episode.frames for episode in episodes]), files=files, found=found)


def find_episodes(root: Path, form: Form, left_out: dict[str, Counter[str]]) -> list[Episode]:
    """Return the episodes in `root`, in natural order: folders of frames, or else video files.

    What is not read is counted in `left_out`, by reason.

    Raises `InputError` if there are none, a file cannot be read, or a table does not match their frames.
    """
    visible = sorted((path for path in root.iterdir() if path.name[0] != "."), key=_by_name)
    pictures = {folder.name: list_frames(folder) for folder in visible if folder.is_dir()}
    pictures = {name: paths for name, paths in pictures.items() if paths}
    files = [path for path in visible if path.suffix.lower() in ENDINGS and path.is_file()]
    if pictures:
        if files:
            left_out["beside folders of frames"] = Counter(path.name for path in files)
        return _with_actions(root, pictures, lambda name: root / name / TABLE)
    videos = _read_videos(files, form, left_out)
    if not videos:
        words = f"give each episode a folder of pictures, or a file ({', '.join(ENDINGS)})"
        raise InputError(f"`data_root` {root}: no folder in it holds frames, and no video can be read: {words}")
    unread = [path.name for path in files if path.name not in videos]
    return _with_actions(root, videos, lambda name: table_of(root / name), unread)


def table_of(video: Path) -> Path:
    """Return the place of the table of actions of one video file."""
    return video.with_suffix(".csv")


def _read_videos(files: Sequence[Path], form: Form, left_out: dict[str, Counter[str]]) -> dict[str, torch.Tensor]:
    """Return the frames of video files by name.

    Raises `InputError`, naming all that are unreadable, unless they are to be left out.
    """
    videos: dict[str, torch.Tensor] = {}
    damaged: dict[str, UnreadableVideo] = {}
    for path in progress_bar(files, desc="reading videos", leave=False):
        try:
            videos[path.name] = read_video(path, form.size, form.channels)
        except UnreadableVideo as error:
            damaged[path.name] = error
        held = sum(math.prod(frames.shape) for frames in videos.values())
        check_memory("the frames of the videos", 2 * held, "choose a smaller `image_size`, or give fewer")
    if damaged and form.skip_unreadable:
        left_out["unreadable"] = left_out.get("unreadable", Counter()) + Counter(list(damaged))
    elif damaged:
        first, *others = damaged
        more = f"; {len(others)} more cannot be read: {', '.join(map(printable, others[:NAMED]))}" if others else ""
        raise InputError(f"{damaged[first]}, or leave such videos out with `skip_unreadable`{more}")
    return videos


def _with_actions(
    root: Path, frames: Mapping[str, Sized], own_table: Callable[[str], Path], unread: Sequence[str] = ()
) -> list[Episode]:
    """Return episodes with their actions, if there are tables: one for all in `root`, or one for each."""
    taken = read_actions(root / TABLE, frames, unread) if (root / TABLE).is_file() else {}
    for name in frames:
        if not (root / TABLE).is_file() and own_table(name).is_file():
            taken |= read_actions(own_table(name), {name: frames[name]})
    if taken and (lacking := [name for name in frames if name not in taken]):
        words = f"actions for {printable(next(iter(taken)))}, but none for {printable(lacking[0])}"
        raise InputError(f"{root} has {words}: give each episode its table, or none")
    return [Episode(name, paths, taken.get(name, [])) for name, paths in frames.items()]


def list_frames(folder: Path) -> list[Path]:
    """Return the pictures in a folder, in natural order."""
    known = endings()
    found = (path for path in folder.iterdir() if path.suffix.lower() in known and path.name[0] != ".")
    return sorted(found, key=_by_name)


def read_actions(table: Path, frames: Mapping[str, Sized], unread: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the actions in a table by episode, one for each frame; a table of one episode need not name it.

    Args:
        table: the file; it may name a video file without its ending.
        frames: those of each episode.
        unread: further episodes, whose rows are left out.

    Raises `InputError` if it cannot be read, or has not as many actions as there are frames.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_plain(table, MAX_BYTES).decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} is not a table in UTF-8 ({reason_of(error)}): save it again") from error
    of_episode, of_action = COLUMNS
    every = [*frames, *unread]
    needed = COLUMNS if len(every) > 1 else (of_action,)
    without_ending = {Path(name).stem: name for name in every if Path(name).suffix.lower() in ENDINGS}
    taken: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 2):
        if not all(isinstance(row.get(name), str) and str(row[name]).strip() for name in needed):
            raise InputError(f"{table}, row {number}: it needs {' and '.join(needed)}, named in the first row")
        episode = row[of_episode].strip() if len(every) > 1 else every[0]
        taken.setdefault(without_ending.get(episode, episode), []).append(row[of_action].strip())
    for name in frames:
        if len(taken.get(name, [])) != len(frames[name]):
            words = f"{len(taken.get(name, []))} actions for {len(frames[name])} frames of {printable(name)}"
            raise InputError(f"{table} has {words}: give each frame a row, in order")
    if unknown := [name for name in taken if name not in every]:
        words = f"names the episode {printable(unknown[0])}, but there is no such folder of frames or video"
        raise InputError(f"{table} {words}")
    return {name: taken[name] for name in frames}


def name_actions(root: Path, episodes: Sequence[Episode]) -> tuple[str, ...]:
    """Return the names of all actions in natural order; of numbers, all from 0 to the highest.

    Raises `InputError` if there are too many.
    """
    written = {action for episode in episodes for action in episode.actions}
    are_numbers = bool(written) and all(action.isascii() and action.isdigit() and len(action) < 9 for action in written)
    count = max(map(int, written)) + 1 if are_numbers else len(written)
    if count > MAX_ACTIONS:
        raise InputError(f"{root} has {count:,} actions: {MAX_ACTIONS:,} at most, named or numbered from 0")
    return tuple(map(str, range(count))) if are_numbers else tuple(sorted(written, key=natural_key))


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
