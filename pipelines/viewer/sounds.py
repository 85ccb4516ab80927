"""Sound on the page: a player, the waveform and the spectrogram, and the codes beneath, all over one axis of time.

Shapes: n sounds, T samples, H W picture.
"""

import html
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from codegrid.codes import Signal
from codegrid.data.images import to_float, to_int16
from codegrid.data.sound_files import read_sound, soundfile
from codegrid.errors import InputError
from codegrid.files import read_plain
from codegrid.pipelines.drawing.sheets import make_sheet, to_pixels
from codegrid.pipelines.drawing.shown import spectrograms

from .pictures import as_link

COLUMNS = 240  # of a waveform
SIDE = 220  # pixels of a sample's width on the page, at least
MOST = 2**28  # bytes of an uploaded file


class Sounds:
    """How the page shows windows of sound; the methods are those of `Pictures`."""

    heading, noun, items = "Sound → codes → sound", "sound", "recordings"
    upload, file_types = "Upload a recording", ["audio"]
    kept, rows = "The first of the codes above", "Codes to keep"
    file, files = "sound.wav", ".zip"

    def __init__(self, signal: Signal) -> None:
        self.signal, self.rate = signal, round(signal.rate or 1)

    def describe(self) -> str:
        """Return what one of the sounds is."""
        return f"sounds of {self.signal.size[0] / self.rate:.2f} seconds at {self.rate:,} Hz"

    def read(self, path: Path) -> torch.Tensor:
        """Read the beginning of a recording as (1, 1, T) in [-1, 1], followed by silence if it is shorter.

        Raises `InputError`, with the file's name as the user knows it, if it cannot be read.
        """
        try:
            wave = read_sound(path.name, read_plain(path, MOST), self.rate)
        except InputError as error:
            raise InputError(str(error).replace(str(path), path.name)) from error
        (length,) = self.signal.size
        first = to_float(torch.from_numpy(wave[:length]))[None, None]
        return F.pad(first, (0, length - first.shape[2]))

    def thumbnails(self, waves: torch.Tensor) -> list[np.ndarray]:
        """Return pictures (H, W, 3) uint8 of waves (n, 1, T) to pick from."""
        return [to_pixels(make_sheet(each[None])) for each in spectrograms(waves)]

    def figure(self, wave: torch.Tensor, name: str, strip: torch.Tensor) -> str:
        """Return the HTML of a wave (1, 1, T) below its name.

        Args:
            wave: in [-1, 1].
            name: its caption.
            strip: (3, grids, t), 0 ... 1: its codes in colours.
        """
        pixels = (255 * strip).round().to(torch.uint8).permute(1, 2, 0).numpy()
        picture = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(picture, "PNG")
        codes = f'<img class="codes" src="{as_link(picture.getvalue())}" alt="{html.escape(name)}: codes in colours">'
        caption = f"<figcaption>{html.escape(name)}</figcaption>"
        return f'<figure class="sound">{caption}{self._player(wave[0], name)}{codes}</figure>'

    def figures(self, waves: torch.Tensor, names: Sequence[str], what: str) -> str:
        """Return the HTML of waves (n, 1, T), as many beside each other as fit; `names` as in `Pictures.figures`."""
        figures = []
        for number, (wave, name) in enumerate(zip(waves, names, strict=True), 1):
            words = f"{what} {number}" + f", {name}" * bool(name)
            caption = f"<figcaption>{html.escape(words)}</figcaption>"
            figures.append(f'<figure class="sound">{self._player(wave, words)}{caption}</figure>')
        return f'<div class="sheet" style="--side: {SIDE}px; --count: {len(waves)}">{"".join(figures)}</div>'

    def content(self, wave: torch.Tensor) -> tuple[bytes, str]:
        """Return a wave (1, 1, T) as a .wav file, and its media type."""
        content = io.BytesIO()
        soundfile().write(content, to_int16(wave[0]).T.numpy(), self.rate, subtype="PCM_16", format="WAV")
        return content.getvalue(), "audio/wav"

    def contents(self, waves: torch.Tensor) -> tuple[bytes, str]:
        """Return waves (n, 1, T) as a .zip file of .wav files, and its media type."""
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for number, wave in enumerate(waves):
                archive.writestr(f"{number:05}.wav", self.content(wave[None])[0])
        return content.getvalue(), "application/zip"

    def compare(self, wave: torch.Tensor, again: torch.Tensor, edited: torch.Tensor | None) -> str:
        """Return nothing: that a wave is off by so much says little of how it sounds."""
        return ""

    def _player(self, wave: torch.Tensor, name: str) -> str:
        """Return the HTML of a wave (1, T): a player, the waveform, the spectrogram."""
        words = html.escape(name)
        content, kind = self.content(wave[None])
        picture = io.BytesIO()
        Image.fromarray(to_pixels((spectrograms(wave[None])[0].expand(3, -1, -1) + 1) / 2)).save(picture, "PNG")
        return (
            f'<audio controls src="{as_link(content, kind)}" aria-label="{words}"></audio>{_waveform(wave[0], words)}'
            f'<img class="spectrogram" src="{as_link(picture.getvalue())}" alt="{words}: spectrogram">'
        )


def _waveform(wave: torch.Tensor, words: str) -> str:
    """Return a wave (T,) as SVG: from its lowest to its highest sample in each column."""
    columns = min(COLUMNS, len(wave))
    padded = F.pad(wave.clamp(-1, 1)[None], (0, -len(wave) % columns), mode="replicate")[0].view(columns, -1)
    ends = zip(padded.amin(1).tolist(), padded.amax(1).tolist(), strict=True)
    lines = "".join(f"M{x + 0.5} {50 - 49 * high:.1f}V{51 - 49 * low:.1f}" for x, (low, high) in enumerate(ends))
    return (
        f'<svg class="waveform" viewBox="0 0 {columns} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{words}: waveform"><path d="{lines}"/></svg>'
    )
