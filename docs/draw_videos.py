"""The picture of futures in docs/how-to/video.md: `python docs/draw_videos.py runs/walk` writes it.

Shapes: m given frames, F new frames, c channels, H W image.
"""

import sys
from pathlib import Path

import torch
from PIL import Image

from codegrid import TwoStagePipeline
from codegrid.pipelines.drawing.films import make_strip
from codegrid.pipelines.generation.futures import decode_frames
from codegrid.pipelines.generation.starts import Starts, action_names, number_of, read_starts
from codegrid.stage2_prior import roll_out

FOLLOWED, CHOSEN = 1333, 1825  # the last given frames: of a video that goes on as it did, and of one under actions
ACTIONS = ("forward", "turn left", "turn right")
FRAMES, SHOWN = 10, 3  # new frames, and how many of the given ones are shown
GAMMA = 0.55  # the maze is dark


def main() -> None:
    """Draw two strips, one below the other."""
    run = Path(sys.argv[1])
    pipeline = TwoStagePipeline.from_parts(str(run / "tokenizer"), str(run / "prior"))
    followed, chosen = (read_starts(str(run / "codes_test"), pipeline, FRAMES, [last]) for last in (FOLLOWED, CHOSEN))
    assert followed.next_actions is not None
    first = {"real": followed_by(pipeline, followed, None)}
    first["drawn, under the same actions"] = followed_by(pipeline, followed, followed.next_actions)
    names = action_names(pipeline)
    second = {"real": followed_by(pipeline, chosen, None)}
    for action in ACTIONS:
        taken = torch.full((1, FRAMES), number_of(action, names))
        second[f"drawn: {action}"] = followed_by(pipeline, chosen, taken)
    strips = [make_strip(rows, SHOWN, GAMMA) for rows in (first, second)]
    width = max(strip.width for strip in strips)
    picture = Image.new("RGB", (width, sum(strip.height for strip in strips)), strips[0].getpixel((0, 0)))
    top = 0
    for strip in strips:
        picture.paste(strip, (width - strip.width, top))
        top += strip.height
    picture.quantize(256, dither=Image.Dither.NONE).save(Path(__file__).parent / "videos.png", optimize=True)


def followed_by(pipeline: TwoStagePipeline, start: Starts, actions: torch.Tensor | None) -> torch.Tensor:
    """Return some given frames and those that come after, (m + F, c, H, W): drawn under actions (1, F), or real."""
    after = start.next_codes
    if actions is not None:
        (prior,) = pipeline.priors
        after = roll_out(prior, start.codes, start.taken(prior, actions), FRAMES)
    given = tuple(grid[:, -SHOWN:] for grid in start.codes)
    return decode_frames(pipeline, tuple(torch.cat(grids, 1) for grids in zip(given, after, strict=True)))[0]


if __name__ == "__main__":
    main()
