"""Options of the priors. Nothing here imports torch: command lines are made from it."""

from dataclasses import dataclass
from typing import Annotated

from codegrid.limits import MAX_KERNEL, MAX_LAYERS, MAX_WIDTH, OneOf, Range

Kernel = Annotated[int, OneOf(range(3, MAX_KERNEL + 1, 2), f"an odd number from 3 to {MAX_KERNEL}")]
Share = Annotated[float, Range(0, below=1)]


@dataclass(frozen=True)
class PixelCNNOptions:
    """Options of the gated PixelCNN."""

    channels: Annotated[int, Range(1, MAX_WIDTH)] = 64
    """Width of both stacks of the prior."""
    num_layers: Annotated[int, Range(1, MAX_LAYERS)] = 15
    """Gated layers, the first included."""
    first_kernel: Kernel = 7
    """Kernel size of the first layer."""
    kernel: Kernel = 3
    """Kernel size of the other layers."""
    dropout: Share = 0.1
    """Share of the input codes that are hidden in training. It keeps a small data set from being learnt by heart, and
    teaches the prior to continue grids that are not perfect, as its own samples are not."""
    label_dropout: Share = 0.1
    """Share of the labels that are hidden in training, so that the prior also learns grids of no particular class:
    guidance needs them. 0: none, and every sample needs a label."""
