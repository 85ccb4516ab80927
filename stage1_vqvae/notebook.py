"""The VQ-VAE paper's networks as public notebooks compute them: their residual blocks also rectify what they skip.

Shapes: b batch, c channels, h w code grid, H W an image.
"""

import torch
from torch import nn

from codegrid.limits import make_options

from .network_options import NotebookOptions
from .networks import PaperNetwork, ResidualBlock


class RectifyingBlock(ResidualBlock):
    """A residual block behind a ReLU: y + (3×3, ReLU, 1×1)(y) with y = ReLU(x), (b, channels, h, w) → the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the ReLU and the block."""
        return super().forward(torch.relu(x))


class NotebookNetwork(PaperNetwork):
    """The paper's networks with ReLUs in skip connections.

    In the notebooks for PyTorch, of zalandoresearch and MishaLaskin, the ReLU of a residual block overwrites the
    features that the block is added to. In that of Sonnet, there is a ReLU before the blocks of the encoder.

    Args:
        hidden_channels: channels at the code grid; half as many after the first convolution.
        options: those of `NotebookOptions`.

    Raises `InputError` if an option is unknown or out of its range.
    """

    settings: NotebookOptions

    def __init__(self, hidden_channels: int = 128, **options: int | str) -> None:
        self.hidden_channels = hidden_channels
        self.settings = make_options(NotebookOptions, options, "the notebook network")

    def encoder(self, in_channels: int, out_channels: int | None, factor: int) -> nn.Sequential:
        """Return an encoder, as `codegrid.protocols.Network.encoder`."""
        encoder = super().encoder(in_channels, out_channels, factor)
        if self.settings.rectified_skips == "first":
            first = next((place for place, layer in enumerate(encoder) if isinstance(layer, ResidualBlock)), None)
            if first is not None:
                encoder[first] = RectifyingBlock(self.hidden_channels, self.settings.residual_channels)
        return encoder

    def _blocks(self) -> list[nn.Module]:
        kind = RectifyingBlock if self.settings.rectified_skips == "all" else ResidualBlock
        settings = self.settings
        return [kind(self.hidden_channels, settings.residual_channels) for _ in range(settings.num_residual_blocks)]
