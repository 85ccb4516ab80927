"""Layers of the gated PixelCNN, built from convolutions that see only earlier sites.

Shapes: b batch, c channels, h w code grid, s channels of the coarser grids' map.
"""

from typing import NamedTuple

import torch
from torch import nn

from codegrid.stage2_prior.causal import horizontal_conv, vertical_conv


class Conditioning(NamedTuple):
    """Everything besides codes that the gates depend on."""

    rows: torch.Tensor | None = None  # (b,) of the tables of labels
    site_map: torch.Tensor | None = None  # (b, s, h, w) from the coarser grids


def gated(x: torch.Tensor) -> torch.Tensor:
    """Return tanh(first half of the channels) ⊙ σ(second half): (b, 2c, ...) → (b, c, ...)."""
    values, gate = x.chunk(2, dim=1)
    return torch.tanh(values) * torch.sigmoid(gate)


class GatedLayer(nn.Module):
    """One layer of both stacks. The first has no residual connection: it would let a site see itself."""

    def __init__(self, channels: int, kernel: int, first: bool, num_conditions: int, map_channels: int = 0) -> None:
        super().__init__()
        self.first = first
        self.vertical = vertical_conv(channels, 2 * channels, kernel, first)
        self.horizontal = horizontal_conv(channels, 2 * channels, kernel, first)
        self.vertical_to_horizontal = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.horizontal_out = nn.Conv2d(channels, channels, 1)
        # V_f h and V_g h of Eq. 4, for the vertical and for the horizontal gate
        self.condition = nn.Embedding(num_conditions, 4 * channels) if num_conditions else None
        self.map_channels = map_channels
        # V_f ∗ s and V_g ∗ s, where the condition is a map
        self.of_map = nn.Conv2d(map_channels, 4 * channels, 1, bias=False) if map_channels else None

    def forward(
        self, vertical: torch.Tensor, horizontal: torch.Tensor, given: Conditioning
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn features (b, c, h, w) of both stacks, and conditions, into the next layer's features."""
        above = self.vertical(vertical)
        left = self.horizontal(horizontal)
        left += self.vertical_to_horizontal(above)
        added = self._added(given)
        if added is not None:
            # in the features' own type: a float32 condition would turn everything after it into float32
            for_vertical, for_horizontal = added.to(above.dtype).chunk(2, dim=1)
            above = above + for_vertical  # not in place: the convolution of `above` needs it as it was
            left += for_horizontal
        update = self.horizontal_out(gated(left))
        return gated(above), update if self.first else horizontal + update

    def _added(self, given: Conditioning) -> torch.Tensor | None:
        """Return what conditions add to both gates, (b, 4c, 1, 1) or (b, 4c, h, w)."""
        of_label = None if self.condition is None else self.condition(given.rows)[:, :, None, None]
        if self.of_map is None:
            return of_label
        of_map: torch.Tensor = self.of_map(given.site_map)
        return of_map if of_label is None else of_map + of_label
