"""Figures of a prior over frames: how its continuations differ from what really followed, and whether actions count.

Shapes: n videos, b batch, m given frames, F new frames, c channels, H W image.
"""

from __future__ import annotations

from typing import Any

import torch

from codegrid.codes import Codes
from codegrid.data.codes import CodeBatch
from codegrid.data.images import evenly_spaced, to_float
from codegrid.data.loading import in_order
from codegrid.data.manifest import EPISODE, LABELS
from codegrid.data.videos import FramesInMemory, Windows
from codegrid.errors import InputError
from codegrid.pipelines.generation.futures import continue_videos, decode_frames
from codegrid.pipelines.generation.starts import Starts, read_from_codes
from codegrid.progress import progress_bar
from codegrid.protocols import Prior

from .inputs import Inputs
from .metrics import Metrics
from .reconstruction import mean_psnr, prior_inputs, squared_errors

AHEAD = (1, 2, 5, 10)  # frames
VIDEOS = 64  # that are continued
COMPARED = 1000  # frames whose likelihood is measured under other actions
SHOWN = 128  # of these at once


def see_windows(inputs: Inputs, codes: list[CodeBatch]) -> list[Any]:
    """Return batches of codes with the earlier frames that a prior is given, if these are known."""
    windows = windows_of(inputs, codes)
    if windows is None:
        return codes
    return [windows.batch(rows) for rows in in_order(len(windows), max(len(batch.codes[0]) for batch in codes))]


def windows_of(inputs: Inputs, codes: list[CodeBatch]) -> Windows | None:
    """Return all codes of the images as frames of videos; None without a prior over frames, or without episodes."""
    frames = max((getattr(prior, "context_frames", 0) for prior in inputs.priors), default=0)
    columns = dict(inputs.images.columns)
    if not frames or EPISODE not in columns:
        return None
    if inputs.images.labels is not None:
        columns[LABELS] = inputs.images.labels
    whole = tuple(torch.cat(grids) for grids in zip(*(batch.codes for batch in codes), strict=True))
    return Windows(FramesInMemory(whole, inputs.tokenizer.layout, columns, inputs.images.classes), frames)


def add_futures(inputs: Inputs, codes: list[CodeBatch], metrics: Metrics) -> None:
    """Add how near continuations come to the real frames, beside a copy of the last given frame, and how actions count.

    All are drawn frame after frame from what was drawn before. `future_psnr_5` is the PSNR in dB of the fifth new
    frame, `future_agreement_5` the share of its codes that are the real ones; `copied_...` are those of the last given
    frame, `decoded_...` of the real codes, which no continuation can beat on average, and `shuffled_...` of
    continuations under the actions of other videos. `action_gain` is how many more bits per code a real frame costs
    under the actions of other frames.
    """
    windows, pipeline = windows_of(inputs, codes), inputs.pipeline
    if windows is None or pipeline is None:
        if any(getattr(prior, "context_frames", 0) for prior in inputs.priors):
            metrics.left_out.append("no future_psnr: the data set does not say which images are frames of one video")
        return
    frames = max(AHEAD)
    try:
        starts = read_from_codes(windows, windows.frames, frames, at_most=VIDEOS)
    except InputError:
        metrics.left_out.append(f"no future_psnr: no video has {windows.frames + frames} frames in a row")
        return
    (prior,) = inputs.priors
    drawn = {"future": starts.next_actions}
    num_actions: int = getattr(prior, "num_actions", 0)
    if num_actions and starts.next_actions is not None and len(starts.actions) > 1:
        drawn["shuffled"] = starts.next_actions.roll(len(starts.actions) // 2, 0)
    measured: dict[str, float] = {}
    real = _real_frames(inputs, starts, frames)
    last = tuple(grid[:, -1:].expand(-1, frames, *grid.shape[2:]) for grid in starts.codes)
    before = to_float(inputs.images.batch(list(starts.frames)).images)[:, None].expand_as(real)
    measured |= _compare("copied", before, last, real, starts)
    measured |= _compare("decoded", decode_frames(pipeline, starts.next_codes), starts.next_codes, real, None)
    for name, actions in progress_bar(drawn.items(), desc="drawing videos"):
        taken = torch.zeros(len(starts.actions), frames) if actions is None else actions
        future = continue_videos(pipeline, starts, taken, inputs.settings)
        measured |= _compare(name, decode_frames(pipeline, future), future, real, starts)
    metrics.add(measured, reference=inputs.reference, videos=len(starts.actions), given_frames=windows.frames)
    if "shuffled" in drawn and not inputs.settings.skip_likelihood:
        metrics.add(_gain_of_actions(prior, windows), reference=inputs.reference)


def _real_frames(inputs: Inputs, starts: Starts, frames: int) -> torch.Tensor:
    """Return the frames (n, F, c, H, W) in [-1, 1] that really follow."""
    rows = [last + ahead for last in starts.frames for ahead in range(1, frames + 1)]
    return to_float(inputs.images.batch(rows).images).unflatten(0, (-1, frames))


def _compare(
    name: str, images: torch.Tensor, codes: Codes, real: torch.Tensor, starts: Starts | None
) -> dict[str, float]:
    """Return the PSNR of some frames, and with `starts` the agreement of codes, at each distance."""
    found = {}
    for ahead in AHEAD:
        found[f"{name}_psnr_{ahead}"] = mean_psnr(squared_errors(real[:, ahead - 1], images[:, ahead - 1]))
    for ahead in AHEAD if starts is not None else ():
        pairs = zip(codes, starts.next_codes, strict=True)  # type: ignore[union-attr]
        same = [(own[:, ahead - 1].cpu() == there[:, ahead - 1]).double().mean() for own, there in pairs]
        found[f"{name}_agreement_{ahead}"] = float(torch.stack(same).mean())
    return found


@torch.no_grad()
def _gain_of_actions(prior: Prior, windows: Windows) -> dict[str, float]:
    """Return how many more bits per code frames cost under the actions of other frames, with its standard error."""
    rows = evenly_spaced(len(windows), COMPARED)
    gains = []
    for some in in_order(len(rows), SHOWN):
        codes, given = prior_inputs(prior, windows.batch(rows[some.start : some.stop]))
        assert given.actions is not None
        other = given._replace(actions=given.actions.roll(max(1, len(some) // 2), 0))
        own, shuffled = (_bits(prior, codes, one) for one in (given, other))
        gains.append(shuffled - own)
    gain = torch.cat(gains)
    return {"action_gain": float(gain.mean()), "action_gain_error": float(gain.std() / len(gain) ** 0.5)}


def _bits(prior: Prior, codes: Codes, given: Any) -> torch.Tensor:
    """Return the mean bits (b,) of a code in each frame."""
    nats = prior.nll(codes, given)
    assert nats is not None
    return torch.stack([grid.flatten(1).double().mean(1) for grid in nats]).mean(0).cpu() / torch.log(torch.tensor(2.0))
