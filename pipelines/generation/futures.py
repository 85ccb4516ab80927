"""Drawing how videos go on, into a folder: the body of `codegrid sample --start`.

Shapes: n videos, m given frames, F new frames, c channels, H W image.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from codegrid.codes import HIDDEN, Codes
from codegrid.data.images import to_uint8
from codegrid.data.video_files import FILM, pyav, write_film
from codegrid.files import write_json
from codegrid.pipelines.drawing.films import MILLISECONDS, make_film, make_strip, to_gif
from codegrid.pipelines.running.cli import print_once, print_plan, resume_bar
from codegrid.pipelines.running.processes import broadcast_from_main, map_across_ranks
from codegrid.pipelines.running.run_folder import Run, left_open
from codegrid.pipelines.sample import Sample
from codegrid.stage2_prior.sampling.backends import backend_of
from codegrid.stage2_prior.sampling.rollout import roll_out

from .pipeline import TwoStagePipeline
from .starts import DEFAULT_STARTS, Starts, action_names, choose_actions, read_starts, written_actions

FRAMES = 10  # by default
FACTS, ARRAYS = "futures.json", "futures.npz"


def draw_futures(settings: Sample, pipeline: TwoStagePipeline, accelerator: Accelerator) -> None:
    """Write a film and a strip of stills for each video into `settings.output`, and all frames as arrays."""
    mp4 = settings.format == "mp4"
    if mp4:
        pyav(f"`format` {settings.format}")  # before anything is drawn
    names = action_names(pipeline)
    written = written_actions(settings.actions, names)
    frames = settings.frames or (len(written) if len(written) > 1 else FRAMES)
    count = settings.num_samples or max(DEFAULT_STARTS, len(settings.start_at))
    starts = read_starts(str(settings.start), pipeline, frames, settings.start_at, count)
    starts = starts.rows([video % len(starts.actions) for video in range(count)])
    actions = choose_actions(written, starts, frames, names)
    backend = backend_of(pipeline.priors, settings.backend)
    if settings.dry_run:
        return print_plan(f"{count:,} videos to continue by {frames} frames", f"backend: {backend}")
    facts = {
        "tokenizer": pipeline.tokenizer.fingerprint(), "priors": [prior.fingerprint() for prior in pipeline.priors],
        "start": starts.fingerprint(), "actions": actions.tolist(), "backend": backend,
    }  # fmt: skip
    run = broadcast_from_main(accelerator, lambda: Run(settings.output, settings, *left_open(settings), **facts))
    if run.finished:
        return print_once(f"{run.shown} is finished: nothing to do")
    broadcast_from_main(accelerator, run.start)
    settings = replace(settings, backend=run.record["settings"]["backend"])

    def draw(rows: range) -> Codes:
        some = slice(rows.start, rows.stop)
        return continue_videos(pipeline, starts.rows(rows), actions[some], settings, rows.start)

    with resume_bar(run.shown, [range(count)], count, "drawing videos") as bar:
        batches = list(map_across_ranks(draw, range(count), settings.batch_size, accelerator, bar.update))
    codes = tuple(torch.cat(grids) for grids in zip(*batches, strict=True))
    if accelerator.is_main_process:
        told = {
            "actions": [[names[a] if names else "" for a in row] for row in actions.tolist()],
            "seed": settings.seed,
        }
        told |= {"start": list(starts.frames), "frames": frames}
        same = not settings.actions  # as in the data, so that the real future can be compared
        run.finish_with(lambda folder: _save(folder, pipeline, starts, codes, actions, told, same, mp4))
    films = f".gif, {FILM}" if mp4 else ".gif"
    print_once(f"{run.shown}: {count:,} videos of {frames} new frames, as {films} and strips, .png; arrays in {ARRAYS}")


def continue_videos(
    pipeline: TwoStagePipeline, starts: Starts, actions: torch.Tensor, settings: Any, first_index: int = 0
) -> Codes:
    """Return the codes (n, F, *shape) of new frames, under the action (n, F) that leads to each.

    The settings give the seed, the backend, and how codes are drawn.
    """
    (prior,) = pipeline.priors
    (config,) = settings.configs(1)
    taken = starts.taken(prior, actions)
    how = {name: value for name, value in vars(config).items() if value is not None}
    return roll_out(
        prior, starts.codes, taken, actions.shape[1], settings.seed, first_index, settings.batch_size,
        settings.backend, **how,
    )  # fmt: skip


@torch.no_grad()
def decode_frames(pipeline: TwoStagePipeline, codes: Codes) -> torch.Tensor:
    """Return frames (n, F, c, H, W) in [-1, 1] of codes (n, F, *shape), grey where they are not known."""
    known = (codes[0] != HIDDEN).flatten(2).all(2)
    flat = tuple(grid.flatten(0, 1).clamp_min(0) for grid in codes)
    pieces = [
        pipeline.decode(tuple(grid[first : first + 64] for grid in flat)).cpu() for first in range(0, len(flat[0]), 64)
    ]
    images = torch.cat(pieces).unflatten(0, known.shape)
    return images * known[:, :, None, None, None].to(images)


def _save(
    folder: Path,
    pipeline: TwoStagePipeline,
    starts: Starts,
    codes: Codes,
    actions: torch.Tensor,
    told: dict[str, Any],
    same: bool,
    mp4: bool,
) -> None:
    """Write the films, the strips, and all new frames.

    `same` says that the actions are those of the data, and `mp4` that films are written in this form, too.
    """
    given, drawn = decode_frames(pipeline, starts.codes), decode_frames(pipeline, codes)
    real = decode_frames(pipeline, starts.next_codes) if starts.next_codes and same else None
    for video in range(len(drawn)):
        path, film = folder / f"future-{video:03d}", make_film([torch.cat([given[video], drawn[video]])])
        path.with_suffix(".gif").write_bytes(to_gif(film))
        if mp4:
            write_film(path.with_suffix(FILM), film, MILLISECONDS)
        rows = {"drawn": drawn[video]} if real is None else {"real": real[video], "drawn": drawn[video]}
        rows = {name: torch.cat([given[video], frames]) for name, frames in rows.items()}
        make_strip(rows, len(given[video])).save(path.with_suffix(".png"))
    frames = to_uint8(drawn).permute(0, 1, 3, 4, 2).numpy()
    np.savez(folder / ARRAYS, frames=frames, actions=actions.numpy())
    write_json(folder / FACTS, told)
