"""Videos to continue: frames of a code dataset, a folder of pictures or a video file, and the actions taken at them.

Shapes: n videos, m given frames, F new frames, *shape the sites of a grid, c channels, H W image.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from codegrid.codes import HIDDEN, Codes
from codegrid.data.codes import CodeBatch, CodeDataset, IndexedCodes
from codegrid.data.folder import FolderImages
from codegrid.data.frame_folders import TABLE, list_frames, read_actions, table_of
from codegrid.data.images import evenly_spaced, to_float
from codegrid.data.loading import Indices
from codegrid.data.manifest import ACTIONS, is_whole
from codegrid.data.video_files import ENDINGS, read_video
from codegrid.data.videos import Windows
from codegrid.errors import InputError, reason_of
from codegrid.files import read_plain
from codegrid.limits import short
from codegrid.tensors import digest_of, sha256

from .pipeline import TwoStagePipeline

MAX_BYTES = 2**24  # of a file of actions
DEFAULT_STARTS = 4


class Starts(NamedTuple):
    """Frames to continue."""

    codes: Codes  # (n, m, *shape) of each grid, HIDDEN where unknown
    actions: Tensor  # (n, m) int64: the action taken at each, HIDDEN where unknown
    next_codes: Codes  # (n, F, *shape): the frames that follow in the data; empty if they are not known
    next_actions: Tensor | None  # (n, F) int64: those that led to them, the first at the last given frame
    frames: tuple[int, ...] = ()  # (n) numbers of the last given frames in the data set

    def rows(self, index: Sequence[int]) -> Starts:
        """Return some of them, which may repeat."""
        own = list(index)
        codes, following = (tuple(grid[own] for grid in grids) for grids in (self.codes, self.next_codes))
        taken = None if self.next_actions is None else self.next_actions[own]
        return Starts(codes, self.actions[own], following, taken, tuple(self.frames[i] for i in own if self.frames))

    def taken(self, prior: Any, actions: Tensor) -> Tensor | None:
        """Return the actions (n, m + F - 1) at all frames but the last, if `actions` (n, F) lead to the new ones.

        None for a prior that knows no actions.
        """
        return torch.cat([self.actions[:, :-1], actions], 1) if getattr(prior, "num_actions", 0) else None

    def fingerprint(self) -> str:
        """Return a digest of everything that videos depend on."""
        parts = [*self.codes, self.actions, *self.next_codes]
        return digest_of([sha256(part.contiguous().cpu().numpy()) for part in parts])


class EncodedFrames(IndexedCodes):
    """Codes of the frames of a data set, encoded when they are read.

    Args:
        images: the data set.
        pipeline: the tokenizer, and a prior over frames. If it knows other actions, the frames have none.
    """

    def __init__(self, images: Any, pipeline: TwoStagePipeline) -> None:
        self.images, self.tokenizer = images, pipeline.tokenizer
        self.layout, self.classes = pipeline.layout, list(images.classes)
        known = list(images.actions) == action_names(pipeline)
        self.columns = {name: column for name, column in images.columns.items() if known or name != ACTIONS}

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Indices, view: int | Indices = 0) -> CodeBatch:
        """Return some frames, in the given order."""
        images = to_float(self.images.batch(indices).images).to(self.tokenizer.device)
        return CodeBatch(tuple(grid.cpu() for grid in self.tokenizer.encode(images)), {})

    def column(self, name: str) -> np.ndarray | None:
        """Return a column (n, ...); None if there is none of this name."""
        return self.columns[name].numpy() if name in self.columns else None


def read_starts(
    place: str, pipeline: TwoStagePipeline, frames: int, start_at: Sequence[int] = (), at_most: int = DEFAULT_STARTS
) -> Starts:
    """Return the videos to continue by `frames` frames.

    Args:
        place: a code dataset of this pipeline's tokenizer, or one video: a folder of pictures, or a file.
        start_at: numbers of the last given frames in the code dataset. By default some, evenly spaced, that all given
            frames come before, and all new ones follow.
        at_most: how many, without `start_at`.

    Raises `InputError` if the place holds neither, or there are no such frames.
    """
    length = context_frames(pipeline)
    if is_whole(place):
        codes = CodeDataset(place)
        if codes.header.tokenizer_fingerprint != pipeline.tokenizer.fingerprint():
            raise InputError(f"`start` {place}: these codes are of another tokenizer: export them with this one")
        return read_from_codes(codes, length, frames, start_at, at_most)
    path = Path(place)
    if not path.is_dir() and not (path.is_file() and path.suffix.lower() in ENDINGS):
        words = f"give exported codes, a folder of frames, or a video ({', '.join(ENDINGS)})"
        raise InputError(f"`start` {place}: there is no such folder or video: {words}")
    if start_at:
        raise InputError("`start_at` goes with exported codes: leave it out, as all frames of a video are given")
    return _read_one(path, pipeline, length)


def context_frames(pipeline: TwoStagePipeline) -> int:
    """Return how many frames the prior of a pipeline is given. Raises `InputError` if it is not one over frames."""
    lengths = [getattr(prior, "context_frames", 0) for prior in pipeline.priors]
    if len(lengths) != 1 or not lengths[0]:
        raise InputError("`start` needs a prior over frames of videos: give one trained with `model` video")
    return int(lengths[0])


def action_names(pipeline: TwoStagePipeline) -> list[str]:
    """Return the names of the actions that a prior over frames knows."""
    (prior,) = pipeline.priors
    count, told = getattr(prior, "num_actions", 0), prior.provenance.get(ACTIONS)
    return told if isinstance(told, list) and len(told) == count else list(map(str, range(count)))


def read_from_codes(
    codes: CodeDataset | Windows, length: int, frames: int, start_at: Sequence[int] = (), at_most: int = DEFAULT_STARTS
) -> Starts:
    """Return frames of a code dataset to continue; see `read_starts`. `length` is m."""
    windows = codes if isinstance(codes, Windows) else Windows(codes, length)
    count, episodes, numbers = len(windows), windows.episodes, windows.numbers

    def follows(rows: np.ndarray, distance: int) -> np.ndarray:
        """Return whether the frame `distance` later is of the same episode, without a gap."""
        later = (rows + distance).clip(0, count - 1)
        there = (rows + distance < count) & (rows + distance >= 0) & (episodes[later] == episodes[rows])
        return there & (numbers[later] == numbers[rows] + distance)

    if start_at:
        for row in start_at:
            if not 0 <= row < count:
                raise InputError(f"`start_at` {row}: the frames are 0 to {count - 1}")
        chosen = np.array(start_at)
    else:
        every = np.arange(count)
        able = every[follows(every, 1 - length) & follows(every, frames)]
        if not len(able):
            needed = length + frames
            raise InputError(f"`start`: no episode has {needed} frames in a row: ask for fewer `frames`, or `start_at`")
        chosen = able[evenly_spaced(len(able), at_most)]
    last = windows.batch(chosen)
    each = len(last.codes)
    given = [*(last.given.codes[each:]), *last.codes]  # without the oldest: the last given frame takes its place
    own = tuple(torch.stack(given[grid::each], 1) for grid in range(each))
    actions = torch.full((len(chosen), length), HIDDEN)
    if last.given.actions is not None and windows.actions is not None:
        taken = torch.from_numpy(windows.actions[chosen])
        actions = torch.cat([last.given.actions[:, 1:], taken[:, None]], 1)
    numbers_of = tuple(map(int, chosen))
    if not all(follows(chosen, distance).all() for distance in range(1, frames + 1)):
        return Starts(own, actions, (), None, numbers_of)
    later = [windows.codes.batch(chosen + distance).codes for distance in range(1, frames + 1)]
    following = tuple(torch.stack([one[grid] for one in later], 1) for grid in range(each))
    led = None
    if windows.actions is not None:
        led = torch.from_numpy(np.stack([windows.actions[chosen + place] for place in range(frames)], 1))
    return Starts(own, actions, following, led, numbers_of)


def _read_one(place: Path, pipeline: TwoStagePipeline, length: int) -> Starts:
    """Return the last frames of one video, encoded; the actions in its table, if there is one."""
    signal = pipeline.tokenizer.signal
    size = signal.size[0], signal.size[1]
    if place.is_file():
        every: Any = read_video(place, size, signal.channels)
        table, images = table_of(place), every[-length:]
    else:
        every, table = list_frames(place), place / TABLE
        if not every:
            raise InputError(f"`start` {place}: it holds neither exported codes nor pictures: give one of them")
        pictures = FolderImages(place, every[-length:], None, [], size, signal.channels)
        images = pictures.batch(range(len(pictures))).images
    codes = pipeline.tokenizer.encode(to_float(images).to(pipeline.device))
    actions = torch.full((1, len(images)), HIDDEN)
    if table.is_file():
        written = read_actions(table, {place.name: every})[place.name][-length:]
        actions = torch.tensor([[number_of(action, action_names(pipeline)) for action in written]])
    return Starts(tuple(grid[None].cpu() for grid in codes), actions, (), None)


def number_of(action: str, names: Sequence[str]) -> int:
    """Return the number of an action that a user wrote: its name, or its number. Raises `InputError` without any."""
    if action in names:
        return names.index(action)
    if action.isascii() and action.isdigit() and len(action) < 9 and int(action) < len(names):
        return int(action)
    known = (
        f"the actions are 0 to {len(names) - 1} ({', '.join(names[:20])})" if names else "this prior knows no actions"
    )
    raise InputError(f"`actions` {short(action)}: {known}")


def choose_actions(written: Sequence[str], starts: Starts, frames: int, names: Sequence[str]) -> Tensor:
    """Return the action (n, F) that leads to each new frame.

    Args:
        written: names or numbers, one for each new frame or one for all. Empty: those of the data.

    Raises `InputError` if there is no such action, or there are too many or too few.
    """
    count = len(starts.actions)
    if not written:
        if starts.next_actions is not None:
            return starts.next_actions
        if not names:
            return torch.full((count, frames), HIDDEN)
        raise InputError(f"`actions`: the frames that follow are not in the data: give one of {', '.join(names[:20])}")
    numbers = [number_of(action, names) for action in written]
    if len(numbers) not in (1, frames):
        raise InputError(f"`actions`: {len(numbers)} for {frames} `frames`: give one for each, or one for all")
    return torch.tensor(numbers).expand(frames).expand(count, frames).clone()


def written_actions(given: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    """Return the actions that a user gave, or those in the file that is given: one in each line, or a column `action`.

    Raises `InputError` if the file cannot be read.
    """
    if len(given) == 1 and given[0] not in names and Path(given[0]).suffix in (".csv", ".txt"):
        return _read_file(Path(given[0]))
    return given


def _read_file(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"`actions` {path}: there is no such file")
    try:
        text = read_plain(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"`actions` {path}: it is not text in UTF-8: save it again") from error
    if path.suffix == ".csv":
        try:
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
        except csv.Error as error:
            raise InputError(f"`actions` {path}: it is not a table ({reason_of(error)}): save it again") from error
        if not rows or any(not row.get("action") for row in rows):
            raise InputError(f"`actions` {path}: it needs a column action, named in the first row")
        return [str(row["action"]).strip() for row in rows]
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise InputError(f"`actions` {path}: it is empty: write an action in each line")
    return found
