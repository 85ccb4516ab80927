"""Figure of the same images by several tokenizers, enlarged: which of them is sharper?

Shapes: n images, c channels, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure

from codegrid.data.images import to_float
from codegrid.errors import InputError
from codegrid.pipelines.evaluation.reconstruction import mean_psnr, squared_errors
from codegrid.pipelines.generation.tokenizers import load_tokenizer
from codegrid.protocols import Tokenizer

from .figures import DPI, WIDTH, Row, columns_for, plot_rows, to_unit
from .letters import in_figures
from .material import Material

if TYPE_CHECKING:
    from codegrid.pipelines.plot import Plot

WINDOW = 128  # pixels of a side that are shown: the middle of larger images
SMALL = 64  # pixels of a side up to which there is room for more images
BANDS = 2  # of images below each other
MAX_NAME = 24


def load_others(folders: Sequence[str], tokenizer: Tokenizer, device: torch.device | str) -> dict[str, Tokenizer]:
    """Load the tokenizers to compare with one, by their folders.

    Raises `InputError` if one cannot be loaded, or its images are of another shape.
    """
    others = {folder: load_tokenizer(folder, device) for folder in folders}
    for folder, other in others.items():
        if other.signal.shape != tokenizer.signal.shape:
            theirs, ours = ("×".join(map(str, each.signal.shape)) for each in (other, tokenizer))
            words = f"encodes images of {theirs}, `tokenizer` of {ours}: give tokenizers of one shape"
            raise InputError(f"`beside` {folder}: it {words}")
    return others


@torch.no_grad()
def plot_comparison(material: Material, settings: Plot) -> Figure:
    """Plot originals, and below them the reconstructions of each tokenizer, so large that pixels can be seen."""
    size = material.tokenizer.signal.size
    shown = tuple(min(side, WINDOW) for side in size)
    columns = columns_for(shown, 6 if max(shown) <= SMALL else 4)
    numbers = material.some(BANDS * columns)
    originals = to_float(material.images[numbers])
    tokenizers = {_place_of(settings): material.tokenizer, **material.others}
    rows = {"original": originals}
    for folder, tokenizer in tokenizers.items():
        again = torch.cat([tokenizer.reconstruct(x.to(material.artifacts.device)) for x in originals.split(64)]).cpu()
        rows[f"{in_figures(folder, MAX_NAME)}\nPSNR {mean_psnr(squared_errors(originals, again)):.2f} dB"] = again
    zoom = max(1, round(WIDTH * DPI / (columns * shown[1])))
    bands = [
        [Row(name, _enlarge(images[first : first + columns], shown, zoom), 0.04) for name, images in rows.items()]
        for first in range(0, len(numbers), columns)
    ]
    for band in bands:
        band[-1] = band[-1]._replace(gap=0.2)
    part = "" if shown == size else f", their middle {shown[0]}×{shown[1]} pixels"
    title = f"Images of the {settings.split} part{part}, and their reconstructions\nPSNR of these {len(numbers)} images"
    return plot_rows([row for band in bands for row in band], title)[0]


def _place_of(settings: Plot) -> str:
    """Return the folder of the tokenizer that others are compared with, of a stack that of the last."""
    return settings.tokenizer if isinstance(settings.tokenizer, str) else settings.tokenizer[-1]


def _enlarge(images: torch.Tensor, shown: tuple[int, ...], zoom: int) -> torch.Tensor:
    """Return the middle h×w of images (n, c, H, W) in [-1, 1], enlarged: (n, 3, zoom · h, zoom · w), 0 ... 1."""
    top, left = ((side - part) // 2 for side, part in zip(images.shape[2:], shown, strict=True))
    middle = to_unit(images[..., top : top + shown[0], left : left + shown[1]])
    return middle.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
