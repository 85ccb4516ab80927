"""A causal transformer over grids of codes with the layers of GPT-2, as minGPT has them.

VQ-GAN's prior is one (Esser et al. 2021, arXiv 2012.09841).

Shapes: b batch, n positions, d channels.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.codes import Grid
from codegrid.stage2_prior.options import GPTOptions

from .layers import Block, Positions
from .network import CausalTransformer, TransformerNetwork


class LayerNorm(nn.LayerNorm):
    """Layer normalisation: w ⊙ (x − mean x) / √(var x + ε) + b over the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., d), in the type of x."""
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class FeedForward(nn.Module):
    """A hidden layer four times as wide: V gelu(U x + a) + b."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inward = nn.Linear(width, 4 * width)
        self.outward = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to each position, (b, n, d) → (b, n, d)."""
        outputs: Tensor = self.outward(F.gelu(self.inward(x)))
        return outputs


class GPTBlock(Block):
    """A layer of GPT-2."""

    norm_class: ClassVar[type[nn.Module]] = LayerNorm
    feed_forward_class: ClassVar[type[nn.Module]] = FeedForward
    bias: ClassVar[bool] = True


class GPTNetwork(TransformerNetwork):
    """The network from codes to logits: each site has a learnt vector of its own, and nothing is rotated."""

    block_class: ClassVar[type[Block]] = GPTBlock

    def make_positions(self, grid: Grid, channels: int) -> nn.Module:
        """Return a module without inputs that makes the vectors (n, d) of the sites of a grid."""
        return Positions((grid.num_sites,), channels)

    def rotations(self, like: Tensor) -> None:
        """Return no rotations."""


class GPT(CausalTransformer):
    """The transformer prior of VQ-GAN: p(codes) = Π p(z_i | z_<i, label, coarser grids), with the layers of GPT-2.

    The order of drawing and the arguments are those of `CausalTransformer`, but it reads no texts.

    Examples:
        >>> import torch
        >>> prior = GPT((Grid((16, 16), 1024),), num_classes=10, num_layers=2)
        >>> codes = (torch.zeros(3, 16, 16, dtype=torch.int64),)
        >>> from codegrid import Condition
        >>> [tuple(logits.shape) for logits in prior.logits(codes, Condition(torch.tensor([0, 1, 2])))]
        [(3, 1024, 16, 16)]
    """

    options: ClassVar[type] = GPTOptions
    called: ClassVar[str] = "the gpt prior"
    network_class: ClassVar[type[TransformerNetwork]] = GPTNetwork
