"""Frames and actions of a walk through a maze, `my_way_home` of ViZDoom, rendered from a seed on the CPU.

The walker presses one button at a time, drawn at random, and holds it for a few frames. Frames are rendered once for
each size and kept in the user's cache.

Shapes: n frames, c channels, H W image.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from codegrid.budget import check_memory
from codegrid.errors import InputError, import_extra
from codegrid.files import open_plain, write_folder
from codegrid.noise import rng
from codegrid.progress import progress_bar

from .found import Found
from .images import ImageDataset, Size, fit
from .manifest import ACTIONS, EPISODE, FRAME
from .names import download_folder
from .videos import POSITION, numbered

SCENARIO = "my_way_home"
BUTTONS = {"turn left": 0.2, "turn right": 0.2, "forward": 0.4, "left": 0.1, "right": 0.1}  # how often each is chosen
HELD = (2, 8)  # fewest and most frames that a button is pressed
SKIP = 2  # tics from one frame to the next
PARTS = {"train": (0, 20_000), "test": (1, 2_000)}  # the seed and the frames of each
SIDE = 84  # pixels, by default
SCREEN = (120, 160, 3)
RECORD = np.dtype([("episode", "<i4"), ("place", "<f4", 3), ("screen", "u1", SCREEN)])  # as doom_frames.py writes them
AT_ONCE = 256  # frames
PATIENCE = 10  # seconds


class Walk(NamedTuple):
    """Frames of a walk, in order."""

    images: torch.Tensor  # (n, c, H, W) uint8
    actions: torch.Tensor  # (n,) int64: the button that is pressed when the frame has been seen
    episodes: torch.Tensor  # (n,) int64, from 0
    positions: torch.Tensor  # (n, 3) float32: x, y and the angle in degrees


def load_doom(root: Path | None, split: str, size: Size | None, channels: int | None) -> ImageDataset:
    """Load the frames of a part: those to train on and those to test on are of different seeds, so of other walks.

    Raises `InputError` if ViZDoom is not installed.
    """
    vizdoom: Any = import_extra("vizdoom", "`dataset` vizdoom", "video")
    form = (size or (SIDE, SIDE), channels or 3)
    names = list(PARTS) if split == "all" else [split]
    walks = [_kept_walk(*PARTS[name], *form, vizdoom.__version__) for name in names]
    before = np.cumsum([0] + [int(walk.episodes[-1]) + 1 for walk in walks])
    episodes = torch.cat([walk.episodes + int(first) for walk, first in zip(walks, before[:-1], strict=True)])
    others = {} if split == "all" else {name: count for name, (_, count) in PARTS.items() if name != split}
    notes = (f"{before[-1]} episodes of {SCENARIO}", f"ViZDoom {vizdoom.__version__}")
    found = Found(len(episodes), (), "vizdoom", split, others, {}, notes, "frame")
    images = ImageDataset(torch.cat([walk.images for walk in walks]) if len(walks) > 1 else walks[0].images)
    images.found, images.actions = found, tuple(BUTTONS)
    images.columns = {
        ACTIONS: torch.cat([walk.actions for walk in walks]), EPISODE: episodes, FRAME: numbered(episodes),
        POSITION: torch.cat([walk.positions for walk in walks]),
    }  # fmt: skip
    return images


def choose_actions(count: int, seed: int) -> np.ndarray:
    """Return the button (count,) uint8 that is pressed at each frame."""
    draws, chosen = rng(seed, "vizdoom actions"), np.empty(0, np.uint8)
    while len(chosen) < count:
        pressed = draws.choice(len(BUTTONS), p=list(BUTTONS.values()))
        chosen = np.append(chosen, np.repeat(np.uint8(pressed), draws.integers(HELD[0], HELD[1] + 1)))
    return chosen[:count]


def render(seed: int, count: int, size: Size, channels: int = 3) -> Walk:
    """Return `count` frames of a walk that follows from a seed, resized and centre-cropped to a size.

    Raises `InputError` if the simulator fails.
    """
    shape = (count, channels, *size)
    check_memory(f"{count:,} frames", int(np.prod(shape)), "choose a smaller `image_size`")
    images, episodes = torch.empty(shape, dtype=torch.uint8), torch.empty(count, dtype=torch.int64)
    actions, positions = choose_actions(count, seed), torch.empty(count, 3)
    first = 0
    with progress_bar(desc="rendering frames", total=count) as bar:
        for records in _play(actions, seed):
            rows = slice(first, first + len(records))
            screens = torch.from_numpy(records["screen"].copy()).permute(0, 3, 1, 2).float()
            images[rows] = fit(screens, size, channels).round().clamp(0, 255).to(torch.uint8)
            episodes[rows] = torch.from_numpy(records["episode"].astype(np.int64))
            positions[rows] = torch.from_numpy(records["place"].astype(np.float32))
            first = rows.stop
            bar.update(len(records))
    return Walk(images, torch.from_numpy(actions.astype(np.int64)), episodes, positions)


def _play(actions: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Yield the records of some frames at a time, from a process whose working folder is a temporary one."""
    program = Path(__file__).with_name("doom_frames.py").read_text(encoding="utf-8")
    command = [sys.executable, "-c", program, SCENARIO, str(seed), str(SKIP)]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as pressed, tempfile.TemporaryFile() as told:
        pressed.write(actions.tobytes())
        pressed.seek(0)
        game = subprocess.Popen(command, cwd=folder, stdin=pressed, stdout=subprocess.PIPE, stderr=told)
        try:
            assert game.stdout is not None
            for first in range(0, len(actions), AT_ONCE):
                needed = RECORD.itemsize * min(AT_ONCE, len(actions) - first)
                content = game.stdout.read(needed)
                if len(content) < needed:
                    game.wait()
                    told.seek(0)
                    words = told.read().decode(errors="replace").strip().splitlines() or ["no reason given"]
                    raise InputError(f"`dataset` vizdoom: the simulator stopped ({words[-1][:200]}): install it again")
                yield np.frombuffer(content, RECORD)
        finally:  # it ends by itself, and with it the simulator that it started
            if game.stdout is not None:
                game.stdout.close()
            try:
                game.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                game.kill()
                game.wait()


def _kept_walk(seed: int, count: int, size: Size, channels: int, version: str) -> Walk:
    """Return a walk from the cache, or render it and keep it there."""
    folder = download_folder() / "vizdoom"
    shape = (count, channels, *size)
    name = f"{SCENARIO}-{version}-seed{seed}-{'x'.join(map(str, shape))}.npz"
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile, InputError), open_plain(folder / name) as file:
        kept = np.load(file, allow_pickle=False)
        walk = Walk(*(torch.from_numpy(kept[part]) for part in Walk._fields))  # checks the sums of their bytes
        if tuple(walk.images.shape) == shape:
            return walk
    walk = render(seed, count, size, channels)
    with suppress(OSError, InputError), write_folder(folder) as staging:  # a full disk: rendered again next time
        np.savez(staging / name, **{part: getattr(walk, part).numpy() for part in Walk._fields})
    return walk
