"""Networks of the tokenizer over codes: its encoder, and a head that predicts codes from the latents alone.

Shapes: b batch, h w code grid, c channels, D embedding_dim of all latents together, K num_embeddings of a grid.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from codegrid.codes import Codes, Layout, Sides

SMALL = 3  # sites of a side that no further convolution halves


def halved_sides(sides: Sides) -> list[Sides]:
    """Return the sides of a grid, and those after each halving, rounded up, until none is longer than 3.

    >>> halved_sides((21, 7))
    [(21, 7), (11, 4), (6, 2), (3, 1)]
    """
    found = [tuple(sides)]
    while max(found[-1]) > SMALL:
        found.append(tuple(-(-side // 2) for side in found[-1]))
    return found


class CodeEncoder(nn.Module):
    """Encoder, codes (b, h, w) of each grid → latents (b, D, 1, 1): embedding, 4×4 convolutions of stride 2, linear.

    The codes of a site are embedded each by its own table, and added. A side of odd length is padded by one site.
    """

    def __init__(self, layout: Layout, channels: int, embedding_dim: int) -> None:
        super().__init__()
        *halvings, last = halved_sides(layout[0].shape)
        self.embeddings = nn.ModuleList(nn.Embedding(grid.num_embeddings, channels) for grid in layout)
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 4, stride=2, padding=1) for _ in halvings)
        self.project = nn.Linear(channels * math.prod(last), embedding_dim)

    def forward(self, codes: Codes) -> torch.Tensor:
        """Return the latents of all sites together."""
        embedded = [table(grid) for table, grid in zip(self.embeddings, codes, strict=True)]
        x = torch.stack(embedded).sum(0).permute(0, 3, 1, 2)
        for convolution in self.convolutions:
            height, width = x.shape[2:]
            x = F.relu(convolution(F.pad(x, (0, width % 2, 0, height % 2))))
        return cast(torch.Tensor, self.project(x.flatten(1)))[:, :, None, None]


class CodeHead(nn.Module):
    """Head, latents (b, D, 1, 1) → logits (b, K, h, w) of each grid, each site for itself: the encoder mirrored."""

    def __init__(self, layout: Layout, channels: int, embedding_dim: int) -> None:
        super().__init__()
        *larger, self.last = halved_sides(layout[0].shape)
        self.larger = larger[::-1]
        self.spread = nn.Linear(embedding_dim, channels * math.prod(self.last))
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1) for _ in larger
        )
        self.heads = nn.ModuleList(nn.Conv2d(channels, grid.num_embeddings, 1) for grid in layout)

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the logits of every code."""
        x = F.relu(self.spread(latents.flatten(1))).unflatten(1, (-1, *self.last))
        for convolution, (height, width) in zip(self.convolutions, self.larger, strict=True):
            x = F.relu(convolution(x)[..., :height, :width])
        return tuple(head(x) for head in self.heads)
