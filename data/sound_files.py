"""Sound files: what they hold as waves, and the waves that a command writes. Needs `soundfile`.

Shapes: T samples of a clip.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codegrid.budget import check_memory
from codegrid.errors import InputError, import_extra, reason_of

from .images import LOUDEST
from .resampling import resample

ENDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".aif", ".aiff")
RATES = range(1000, 768_001)  # samples a second that a recording may have
QUIETEST = 1e-3  # peak, of 1: a clip below it is silent


class UnreadableSound(InputError):
    """Error that a file is not sound, or not sound that can be used."""


def soundfile() -> Any:
    """Return the module. Raises `InputError` if it is not installed."""
    return import_extra("soundfile", "reading and writing sound", "sound")


def read_sound(name: str, content: bytes, rate: int) -> np.ndarray:
    """Decode a file to one wave (T,) int16 at a sampling rate: the mean of its channels.

    Raises `UnreadableSound`, calling the file `name`, if that is not possible.
    """
    try:
        with soundfile().SoundFile(io.BytesIO(content)) as file:
            own_rate = file.samplerate
            if own_rate not in RATES:
                raise UnreadableSound(f"{name} claims {own_rate:,} samples a second: fix or remove it")
            held = file.frames * (file.channels + math.ceil(rate / own_rate))  # the last as resampled
            check_memory(f"the samples of {name}", 8 * held, "cut it into shorter files")
            samples = file.read(dtype="float32", always_2d=True)
    except InputError:
        raise
    except Exception as error:  # damaged files raise many types of errors
        raise UnreadableSound(f"{name} is not a readable sound file ({reason_of(error)}): fix or remove it") from error
    if not len(samples) or not np.isfinite(samples).all():
        held = "values that are not numbers" if len(samples) else "no sound"
        raise UnreadableSound(f"{name} holds {held}: fix or remove it")
    wave = torch.from_numpy(samples.mean(axis=1))
    resampled = resample(wave[None], own_rate, rate)[0]
    return (resampled.clamp(-1, 1) * LOUDEST).round().to(torch.int16).numpy()


def is_silent(wave: np.ndarray) -> bool:
    """Return whether a wave (T,) int16 holds nothing that can be heard."""
    return not len(wave) or max(-int(wave.min()), int(wave.max())) < QUIETEST * LOUDEST


def write_wave(path: Path, wave: torch.Tensor, rate: float) -> None:
    """Write a wave (c, T) int16 as a .wav file of 16 bits."""
    soundfile().write(path, wave.T.numpy(), round(rate), subtype="PCM_16", format="WAV")


def read_wave(path: Path) -> torch.Tensor:
    """Return the wave (c, T) int16 of a file that `write_wave` wrote."""
    samples, _ = soundfile().read(path, dtype="int16", always_2d=True)
    return torch.from_numpy(np.ascontiguousarray(samples.T))


def parse_segments(text: str) -> list[tuple[float, str]]:
    """Return the segments of a label file (.lab), each by its end in seconds and its phone, in order.

    Its lines, after one that is `#`, are `END NUMBER PHONE`. Raises ValueError if they are not.
    """
    lines: Sequence[str] = text.splitlines()
    for number, line in enumerate(lines):
        if line.strip() == "#":
            lines = lines[number + 1 :]
            break
    fields = [line.split() for line in lines if line.strip()]
    return [(float(end), phone) for end, _, phone in fields]
