"""Videos on the page: what a prior over frames draws after a few given ones, under actions that the visitor chooses.

Shapes: n starts, m given frames, F new frames, k of them so far, c channels, H W image, *shape the sites of each grid.
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codegrid.codes import HIDDEN, Codes
from codegrid.data.names import Places, as_places
from codegrid.data.videos import Windows
from codegrid.errors import InputError
from codegrid.file_names import printable
from codegrid.limits import check_whole
from codegrid.noise import Noise
from codegrid.pipelines.drawing.films import make_film, make_strip, to_gif
from codegrid.pipelines.generation.artifacts import load_images_for
from codegrid.pipelines.generation.chosen_data import data_at_hand, learnt_data
from codegrid.pipelines.generation.futures import FRAMES, decode_frames
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.generation.starts import (
    EncodedFrames,
    Starts,
    action_names,
    context_frames,
    number_of,
    read_from_codes,
    read_starts,
)
from codegrid.pipelines.running.places import find_part
from codegrid.stage2_prior.sampling.rollout import next_frames

from .actions import Partial, configs_for
from .answers import Answers
from .pictures import as_link

COUNT = 12  # starts to pick from
MOST = 50  # new frames


def find_starts(
    pipeline: TwoStagePipeline | None, run: Path | None, dataset: str | None = None, data_root: str | Places = ()
) -> Starts | None:
    """Return frames of test videos that a pipeline can continue, with those that follow them; None without any.

    They are of the data set that is asked for, or of the run's exported codes, or of the tokenizer's data set, if it is
    on this machine.
    """
    try:
        length = context_frames(pipeline) if pipeline is not None else 0
    except InputError:  # no prior over frames
        length = 0
    if pipeline is None or not length:
        return None
    with suppress(InputError):
        asked = None if dataset is None else (dataset, as_places(data_root))
        if asked is None and data_root:
            asked = learnt_data(pipeline.tokenizer, data_root)
        if asked is None and run is not None and (exported := find_part(run, "validation_codes")):
            return read_starts(str(exported), pipeline, FRAMES, at_most=COUNT)
        if (chosen := asked or data_at_hand(pipeline.tokenizer)) is not None:
            images = load_images_for(pipeline.tokenizer, *chosen, "test")
            windows = Windows(EncodedFrames(images, pipeline), length)
            return read_from_codes(windows, length, FRAMES, at_most=COUNT)
    return None


class Videos:
    """What the page does with videos, for one pipeline and some starts."""

    def __init__(self, answers: Answers, pipeline: TwoStagePipeline, starts: Starts) -> None:
        self.answers, self.pipeline, self.starts = answers, pipeline, starts
        self.names = list(map(printable, action_names(pipeline)))

    def thumbnails(self) -> list[np.ndarray]:
        """Return pictures (H, W, 3) uint8 of the last given frames to pick from."""
        last = tuple(grid[:, -1:] for grid in self.starts.codes)
        return self.answers.medium.thumbnails(decode_frames(self.pipeline, last)[:, 0])

    def add(self, written: str, action: str) -> str:
        """Return the field of actions with one more."""
        return f"{written.rstrip(', ')}, {action}" if written.strip(", ") else action

    def roll_out(self, number: int, written: str, frames: int, *values: Any) -> Iterator[tuple]:
        """Continue a video frame by frame.

        Args:
            number: of the start.
            written: the field of actions: one for each new frame, or one for all, between commas; empty for those that
                were really taken.
            frames: F, if it is not told by several actions.
            values: those of the controls.

        Yields, again and again, the HTML, the new frames as a `Partial`, and the progress.
        """
        check_whole("start", number, 0, len(self.starts.actions) - 1)
        start, named = self.starts.rows([number]), self.answers.named(values)
        actions = self.choose(start, written, frames)
        given = decode_frames(self.pipeline, start.codes)[0]
        real = decode_frames(self.pipeline, start.next_codes)[0] if start.next_codes else None
        for partial in continue_video(self.pipeline, start, actions, **named):
            yield self._show(number, given, partial, real, actions[0].tolist()), partial, f"{partial.done:.0%} drawn"

    def choose(self, start: Starts, written: str, frames: int) -> torch.Tensor:
        """Return the action (1, F) that leads to each new frame; see `roll_out`.

        Raises `InputError` if there is no such action, or the number of frames is out of range.
        """
        words = [word.strip() for word in written.split(",") if word.strip()]
        frames = len(words) if len(words) > 1 else frames
        check_whole("frames", frames, 1, MOST)
        if words:
            numbers = [number_of(word, self.names) for word in words]
            return torch.tensor(numbers).expand(1, frames)
        if not self.names:
            return torch.full((1, frames), HIDDEN)
        known = 0 if start.next_actions is None else start.next_actions.shape[1]
        if frames > known or start.next_actions is None:
            words_known = f"only {known} of the data are known" if known else "those of the data are not known"
            raise InputError(f"`actions`: {words_known}: give some, such as {self.names[0]}")
        return start.next_actions[:, :frames]

    def download(self, drawn: Partial | None) -> str:
        """Return the drawn frames as a film that the browser saves."""
        if drawn is None:
            raise InputError("nothing is drawn yet: draw first")
        return as_link(to_gif(make_film([drawn.images])), "image/gif")

    def _show(
        self, number: int, given: torch.Tensor, drawn: Partial, real: torch.Tensor | None, actions: list[int]
    ) -> str:
        """Return the HTML of the given frames (m, c, H, W), the drawn ones and those that really followed (F, c, H, W).

        A strip of stills grows with them; the film is added in the end.
        """
        rows = {"drawn": _filled(drawn.images, len(actions))}
        if real is not None:
            rows = {"real": _filled(real[: len(actions)], len(actions)), **rows}
        whole = {name: torch.cat([given, frames]) for name, frames in rows.items()}
        runs = [(action, len(list(same))) for action, same in groupby(actions) if action != HIDDEN]
        under = ", ".join(self.names[action] + f" ×{count}" * (count > 1) for action, count in runs)
        words = f"{len(given)} given frames and {len(actions)} new ones" + f": {under}" * bool(under)
        strip = io.BytesIO()
        make_strip(whole, len(given)).save(strip, "PNG")
        figures = _figure("strip", as_link(strip.getvalue()), f"Video {number + 1}: {words}", f"Stills: {words}")
        if drawn.finished:
            sides = " Left: what followed; right: drawn." * (real is not None)
            film = as_link(to_gif(make_film(list(whole.values()))), "image/gif")
            figures = _figure(f"film of-{len(whole)}", film, f"The film.{sides}", f"Film: {words}") + figures
        return f'<div class="video">{figures}</div>'


@torch.no_grad()
def continue_video(
    pipeline: TwoStagePipeline, start: Starts, actions: torch.Tensor, seed: int = 0, **values: Any
) -> Iterator[Partial]:
    """Draw the frames after one start, under the action (1, F) that leads to each, and yield all so far after each.

    They equal the first video of `sample` from the same start.
    """
    (prior,), (config,) = pipeline.priors, configs_for(pipeline, values)
    count = actions.shape[1]
    taken = start.taken(prior, actions)
    noise, frames = Noise(seed, 0, 1, prior.device), list[Codes]()
    images: list[torch.Tensor] = []
    for codes in next_frames(prior, start.codes, taken, count, noise, config):
        frames.append(tuple(grid.cpu() for grid in codes))
        images.append(pipeline.decode(codes).clamp(-1, 1).cpu())
        so_far = tuple(torch.cat(grids) for grids in zip(*frames, strict=True))
        yield Partial(torch.cat(images), so_far, len(frames) / count, None)


def _filled(frames: torch.Tensor, count: int) -> torch.Tensor:
    """Return frames (k, c, H, W) followed by grey ones, `count` in all."""
    return torch.cat([frames, frames.new_zeros(count - len(frames), *frames.shape[1:])])


def _figure(kind: str, link: str, caption: str, words: str) -> str:
    return (  # with the keyboard, too, a wide one can be scrolled
        f'<figure class="{kind}" tabindex="0"><figcaption>{html.escape(caption)}</figcaption>'
        f'<img src="{link}" alt="{html.escape(words)}"></figure>'
    )
