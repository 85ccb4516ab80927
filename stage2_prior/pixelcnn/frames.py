"""The network that reads earlier frames and the actions taken at them, once for each frame that is drawn.

Shapes: b batch, f earlier frames, h w code grid, e frame_channels, s condition_channels, q codes of a site.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from codegrid.codes import HIDDEN, Codes, Layout
from codegrid.stage2_prior.options import VideoOptions

from .layers import gated


class FramesNetwork(nn.Module):
    """Earlier frames and actions → features (b, s, h, w) of the frame to draw.

    The embedded frames are stacked along the channels, so that each site sees how they moved. Each layer adds an
    embedding of the actions before its gate: they decide which of the motions that it knows come through.

    Args:
        layout: the grids of a frame, one for each code of a site.
        options: the sizes.
        num_actions: actions are 0 ... num_actions-1; 0: none are known.
    """

    def __init__(self, layout: Layout, options: VideoOptions, num_actions: int) -> None:
        super().__init__()
        frames, channels = options.context_frames, options.condition_channels
        self.frames, self.num_actions = frames, num_actions
        # row 0 stands for a hidden code, row k + 1 for code k
        self.tables = nn.ModuleList(nn.Embedding(grid.num_embeddings + 1, options.frame_channels) for grid in layout)
        self.first = nn.Conv2d(frames * options.frame_channels, channels, 3, padding=1)
        self.layers = nn.ModuleList(
            FrameLayer(channels, frames * (num_actions + 1) if num_actions else 0)
            for _ in range(options.condition_blocks)
        )
        self.last = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, given: Codes) -> Tensor:
        """Turn f frames of codes (b, h, w), the q grids of the oldest first, and actions (b, f) into features.

        Either is HIDDEN where it is not known.
        """
        *frames, actions = given
        rows = None
        if self.num_actions:  # a row for each action at each place
            places = torch.arange(self.frames, device=actions.device) * (self.num_actions + 1)
            rows = actions - HIDDEN + places
        count = len(self.tables)
        joined = []
        for first in range(0, len(frames), count):
            own = zip(self.tables, frames[first : first + count], strict=True)
            embedded = [cast(Tensor, table(grid - HIDDEN)) for table, grid in own]
            joined.append(sum(embedded[1:], embedded[0]).permute(0, 3, 1, 2))
        features = self.first(torch.cat(joined, 1))
        for layer in self.layers:
            features = layer(features, rows)
        last: Tensor = self.last(features)
        return last


class FrameLayer(nn.Module):
    """A residual gated layer: x + 1×1(tanh(u) ⊙ σ(v)), where (u, v) = 3×3(ReLU(x)) + V a of the actions."""

    def __init__(self, channels: int, num_rows: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.of_actions = nn.Embedding(num_rows, 2 * channels) if num_rows else None

    def forward(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """Apply the layer, (b, s, h, w) → (b, s, h, w); rows (b, f) are those of the actions."""
        inside = self.conv(x.relu())
        if self.of_actions is not None:
            inside = inside + self.of_actions(rows).sum(1)[:, :, None, None].to(inside.dtype)
        out: Tensor = x + self.out(gated(inside))
        return out
