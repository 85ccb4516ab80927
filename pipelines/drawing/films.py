"""Videos as pictures: films that play in a browser, and strips of stills with what each row and column is.

Shapes: F frames, m given frames, c channels, H W image.
"""

import io
from collections.abc import Mapping, Sequence

import torch
from PIL import Image

from codegrid.data.images import to_uint8

from .blocks import Block, draw_blocks
from .letters import drawable
from .sheets import to_unit

MILLISECONDS = 150  # of a frame
SIDE = 256  # pixels of the longer side of a film, at least: small frames are enlarged by a whole factor
GAP, PAPER = 8, 255  # pixels between films beside each other, and their grey
GIVEN = "given"
NOTE = "+n: n frames after the last given one"


def make_film(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the frames (F, 3, H', W') uint8 of a film in which videos (F, c, H, W) in [-1, 1] play side by side."""
    scale = max(1, -(-SIDE // max(parts[0].shape[2:])))
    shown = [to_uint8(frames.cpu()).expand(-1, 3, -1, -1) for frames in parts]
    shown = [frames.repeat_interleave(scale, 2).repeat_interleave(scale, 3) for frames in shown]
    between = torch.full((*shown[0].shape[:3], GAP), PAPER, dtype=torch.uint8)
    return torch.cat([shown[0], *(part for frames in shown[1:] for part in (between, frames))], 3)


def to_gif(film: torch.Tensor) -> bytes:
    """Return frames (F, 3, H, W) uint8 as the bytes of an animated GIF that repeats."""
    first, *others = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in film]
    content = io.BytesIO()
    first.save(content, "GIF", save_all=True, append_images=others, duration=MILLISECONDS, loop=0)
    return content.getvalue()


def make_strip(rows: Mapping[str, torch.Tensor], given: int, gamma: float = 1.0) -> Image.Image:
    """Return a picture of videos below each other, each beside its name, and below the number of frames ahead.

    Args:
        rows: the frames (F, c, H, W) in [-1, 1] of each video by name.
        given: m, how many frames at the beginning of each are given ones.
        gamma: below 1, dark frames are shown brighter, and a note says so.

    >>> make_strip({"real": torch.zeros(5, 1, 28, 28), "drawn": torch.zeros(5, 1, 28, 28)}, given=2).width
    966
    """
    columns = torch.stack(list(rows.values()), 1)
    note = NOTE
    if gamma != 1:
        columns = 2 * to_unit(columns) ** gamma - 1
        note += f"; shown brighter (gamma {gamma:g})"
    headings = [GIVEN] * given + [f"+{ahead}" for ahead in range(1, len(columns) - given + 1)]
    blocks = [Block(heading, column, 1) for heading, column in zip(headings, columns, strict=True)]
    return draw_blocks([blocks], [drawable(name) for name in rows], note)
