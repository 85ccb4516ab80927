"""A prior over videos: p(next frame | earlier frames, the actions taken at them), in code space.

Shapes: b batch, f context_frames, h w code grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from codegrid.codes import HIDDEN, Codes, Condition, Grid, Moment
from codegrid.errors import InputError
from codegrid.limits import MAX_CLASSES, check_whole
from codegrid.stage2_prior.coarser import hide_some
from codegrid.stage2_prior.options import VideoOptions
from codegrid.stage2_prior.site_codes import check_one_shape

from .frames import FramesNetwork
from .network import GatedPixelCNN, PixelCNNNetwork


class VideoPrior(GatedPixelCNN):
    """A gated PixelCNN over the codes of a frame, whose gates also depend on earlier frames and actions.

    `Condition.codes` are the f earlier frames, oldest first (of several codes a site, the q grids of each frame follow
    each other), and `Condition.actions` (b, f) the action taken at each of them: the last one leads to the frame that
    is drawn. Both are HIDDEN where they are not known; without them all are.

    Args:
        layout: the grids (h, w) of a frame, all of one shape.
        grids: their indices in the tokenizer's layout; by default 0, 1, ...
        num_classes: labels are 0 ... num_classes-1; 0: none.
        num_actions: actions are 0 ... num_actions-1; 0: the prior is not given any.
        options: the fields of `VideoOptions`.

    Raises `InputError` if an option is unknown or out of range, or the prior cannot learn such grids.

    Examples:
        >>> from codegrid import Grid
        >>> prior = VideoPrior((Grid((7, 7), 16),), num_actions=3, num_layers=2, context_frames=2)
        >>> frames, actions = torch.zeros(2, 8, 7, 7, dtype=torch.int64), torch.ones(8, 2, dtype=torch.int64)
        >>> (logits,) = prior.logits((frames[1],), Condition(codes=tuple(frames), actions=actions))
        >>> logits.shape
        torch.Size([8, 16, 7, 7])
    """

    options: ClassVar[type] = VideoOptions
    called: ClassVar[str] = "the video prior"

    def __init__(
        self,
        layout: Sequence[Grid | dict[str, Any]],
        grids: Sequence[int] | None = None,
        num_classes: int = 0,
        num_actions: int = 0,
        **options: Any,
    ) -> None:
        check_whole("num_actions", num_actions, 0, MAX_CLASSES)
        self.num_actions = num_actions  # first: the network is made of it
        super().__init__(layout, grids, num_classes, **options)
        self.context_frames = self.chosen.context_frames
        self.config |= {**asdict(self.chosen), "label_dropout": self.label_dropout, "num_actions": num_actions}

    def check_layout(self) -> None:
        """Raise `InputError` if this prior cannot learn its layout."""
        check_one_shape(self.layout, "video")

    def make_network(self) -> nn.Module:
        """Return a new network of this prior's sizes."""
        of_given = FramesNetwork(self.layout, self.chosen, self.num_actions)
        return PixelCNNNetwork(self.layout, self.chosen, self.num_conditions, of_given=of_given)

    @property
    def takes(self) -> tuple[str, ...]:
        """Return the parts of a condition, besides labels, that this prior accepts."""
        return ("codes", *["actions"] * bool(self.num_actions))

    def coarser_codes(self, given: Condition, batch_size: int, moment: Moment | None = None) -> Codes:
        """Return the codes (b, h, w) of the earlier frames, oldest first, then the actions (b, f).

        A moment shortens the context of a share `frame_dropout` of the samples, and hides a share `coarse_dropout` of
        the codes. Raises `InputError` if codes or actions are of another shape or out of range.
        """
        frames, actions = self._frames(given, batch_size), self._actions(given, batch_size)
        if moment is None:
            return (*frames, actions)
        if self.chosen.frame_dropout:
            known = self._shortened(batch_size, moment).to(actions.device)  # (b, f)
            each = len(self.layout)
            frames = tuple(
                grid.where(known[:, number // each, None, None], HIDDEN) for number, grid in enumerate(frames)
            )
            actions = actions.where(known, HIDDEN)
        if self.chosen.coarse_dropout:
            frames = hide_some(frames, self.chosen.coarse_dropout, moment.noise)
        return (*frames, actions)

    def _shortened(self, batch_size: int, moment: Moment) -> Tensor:
        """Return which frames (b, f) stay known: the newest few of some samples, all of the others."""
        count = self.context_frames
        drawn = moment.noise.uniforms("frame dropout", 2)
        kept = torch.where(drawn[:, 0] < self.chosen.frame_dropout, (drawn[:, 1] * (count + 1)).floor(), count)
        return torch.arange(count, device=kept.device) >= count - kept[:, None]

    def _frames(self, given: Condition, batch_size: int) -> Codes:
        """Return the checked codes of all earlier frames, HIDDEN without any."""
        wanted = self.layout * self.context_frames
        if not given.codes:
            shapes = ((batch_size, *grid.shape) for grid in wanted)
            return tuple(torch.full(shape, HIDDEN, device=self.device) for shape in shapes)
        if len(given.codes) != len(wanted):
            raise InputError(
                f"`codes` of {len(given.codes)} grids, but this prior is given {self.context_frames} earlier frames, "
                f"{len(wanted)} grids: those that are not known are {HIDDEN}"
            )
        for number, (codes, grid) in enumerate(zip(given.codes, wanted, strict=True)):
            shape = (batch_size, *grid.shape)
            if tuple(codes.shape) != shape:
                raise InputError(f"`codes` of shape {tuple(codes.shape)} for frame {number}, but {shape} is needed")
        every = torch.stack([torch.stack(codes.aminmax()) for codes in given.codes]) if batch_size else torch.zeros(0)
        sizes = [grid.num_embeddings for grid in wanted]
        for number, (low, high) in enumerate(every.tolist()):  # waits for a GPU once
            if low < HIDDEN or high >= sizes[number]:
                wrong = int(low if low < HIDDEN else high)
                raise InputError(
                    f"`codes`: code {wrong} in an earlier frame, but its codes are 0 to {sizes[number] - 1}"
                )
        return tuple(codes.to(self.device, torch.int64) for codes in given.codes)

    def _actions(self, given: Condition, batch_size: int) -> Tensor:
        """Return the checked actions (b, f), HIDDEN without any."""
        shape = (batch_size, self.context_frames)
        if given.actions is None:
            return torch.full(shape, HIDDEN, device=self.device)
        if tuple(given.actions.shape) != shape:
            raise InputError(
                f"`actions` of shape {tuple(given.actions.shape)}, but {shape} is needed: one for each earlier frame"
            )
        if given.actions.numel():
            low, high = torch.stack(given.actions.aminmax()).tolist()
            if low < HIDDEN or high >= self.num_actions:
                wrong = int(low if low < HIDDEN else high)
                raise InputError(f"`actions`: action {wrong}, but the actions are 0 to {self.num_actions - 1}")
        return given.actions.to(self.device, torch.int64)
