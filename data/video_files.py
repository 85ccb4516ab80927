"""Video files: their frames, and films that a command writes. All but GIFs need the `av` package.

Shapes: F frames, c channels, H W image.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, ImageSequence

from codegrid.budget import check_memory
from codegrid.errors import InputError, import_extra, reason_of
from codegrid.files import open_plain

from .images import MAX_PIXELS, Size
from .pictures import flatten, open_picture

# the reader of each ending: guessed from its first bytes, a file could be a playlist that names others
READERS = {".avi": "avi", ".m4v": "mov", ".mkv": "matroska", ".mov": "mov", ".mp4": "mov", ".webm": "matroska"}
ENDINGS = (".gif", *READERS)
FILM = ".mp4"  # what is written
CODEC, QUALITY = "libx264", {"crf": "18"}
CHECKED = 64  # frames after which memory is checked


class UnreadableVideo(InputError):
    """Error that a file is not a video, or not one that can be used; the message names the file."""


def pyav(use: str) -> Any:
    """Return the module. Raises `InputError` if it is not installed; `use` is what needs it."""
    return import_extra("av", use, "video")


def read_video(path: Path, size: Size | None, channels: int | None) -> torch.Tensor:
    """Decode all frames of a file, upright, resized and centre-cropped to a size: (F, c, H, W) uint8.

    Without `size`, frames are as large as they are; without `channels`, in colour.

    Raises `UnreadableVideo` if it is damaged, and another `InputError` without the package that reads it.
    """
    frames: list[np.ndarray] = []
    try:
        for picture in _pictures_of(path) if path.suffix.lower() in READERS else _pictures_of_gif(path):
            image = picture.convert("L" if channels == 1 else "RGB")
            if size is not None:
                image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
            frames.append(np.array(image))
            if len(frames) % CHECKED == 0:
                needed = 2 * len(frames) * frames[0].nbytes  # one by one, and stacked
                check_memory(f"the frames of {path}", needed, "choose a smaller `image_size`, or cut it")
    except InputError:
        raise
    except Exception as error:  # damaged files raise many types of errors
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise UnreadableVideo(f"{path} is not a readable video ({reason}): fix or remove it") from error
    if not frames:
        raise UnreadableVideo(f"{path} holds no frames: fix or remove it")
    if wrong := [frame for frame in frames if frame.shape != frames[0].shape]:
        sizes = " and ".join(f"{frame.shape[0]}×{frame.shape[1]}" for frame in (frames[0], wrong[0]))
        raise InputError(f"{path} has frames of {sizes}: give `image_size` to bring them to one size")
    pixels = torch.from_numpy(np.stack(frames))
    return pixels.unsqueeze(1) if channels == 1 else pixels.permute(0, 3, 1, 2).contiguous()


def _pictures_of(path: Path) -> Iterator[Image.Image]:
    av = pyav(f"reading {path.name}")
    with open_plain(path) as file, av.open(file, format=READERS[path.suffix.lower()]) as container:
        for stream in container.streams.video[:1]:
            if stream.width * stream.height > MAX_PIXELS:
                words = f"at most {MAX_PIXELS:,} are read: make it smaller or remove it"
                raise UnreadableVideo(f"{path} has {stream.height}×{stream.width} pixels, {words}")
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise UnreadableVideo(f"{path} is damaged: fix or remove it")
                yield frame.to_image().rotate(frame.rotation, expand=True)  # as phones hold it


def _pictures_of_gif(path: Path) -> Iterator[Image.Image]:
    with open_picture(path) as pictures:
        for picture in ImageSequence.Iterator(pictures):
            yield flatten(path, picture)[0]


def write_film(path: Path, frames: torch.Tensor, milliseconds: int) -> None:
    """Write frames (F, 3, H, W) uint8 as an .mp4 file that browsers play, each shown so long.

    An odd height or width grows by a pixel.

    Raises `InputError` if the package that writes it is not installed.
    """
    height, width = frames.shape[2:]
    even = F.pad(frames.float(), (0, width % 2, 0, height % 2), mode="replicate").to(torch.uint8)
    av = pyav(f"writing {FILM} files")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(CODEC, rate=Fraction(1000, milliseconds), options=QUALITY)
        stream.height, stream.width, stream.pix_fmt = *even.shape[2:], "yuv420p"
        for frame in even.permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
