"""Options of the networks of tokenizers of images, with their ranges. Command lines are built from them, without torch.

The docstring below a field is the help of its flag.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from codegrid.errors import InputError
from codegrid.limits import MAX_LAYERS, MAX_WIDTH, OneOf, Range, check_fields


@dataclass(frozen=True)
class PaperOptions:
    """Options of the VQ-VAE paper's encoder and decoder."""

    residual_channels: Annotated[int, Range(1, MAX_WIDTH)] = 32
    """Channels inside a residual block of --network paper."""
    num_residual_blocks: Annotated[int, Range(0, MAX_LAYERS)] = 2
    """Residual blocks in the encoder, and as many in the decoder. --network resnet has that many at each of its sizes,
    and one more in the decoder."""


@dataclass(frozen=True)
class NotebookOptions(PaperOptions):
    """Options of the paper's networks as public notebooks compute them."""

    rectified_skips: Literal["all", "first"] = "all"
    """Residual blocks of --network notebook whose skip connection passes a ReLU, too. all: each one, as in the PyTorch
    notebooks, whose ReLUs overwrite their input; first: only the first one of the encoder, as in that of Sonnet."""


@dataclass(frozen=True)
class ResNetOptions:
    """Options of the residual networks with attention."""

    num_residual_blocks: Annotated[int, Range(1, MAX_LAYERS)] = 2
    """Residual blocks at each size of the encoder; the decoder has one more."""


@dataclass(frozen=True)
class DallEOptions(ResNetOptions):
    """Options of the networks of DALL·E's discrete VAE."""

    start_channels: Annotated[int, Range(1, MAX_WIDTH)] = 128
    """Channels with which the decoder of --network dalle begins."""


@dataclass(frozen=True)
class VQGANOptions(ResNetOptions):
    """Options of VQ-GAN's networks. Raises `InputError` if there is no size."""

    channel_multipliers: tuple[Annotated[int, Range(1, 64)], ...] = (1, 1, 2, 2, 4)
    """Width of --network vqgan at each size, from the image to the code grid, as a multiple of --hidden-channels. If
    there are more sizes, the first number is repeated; if fewer, the last ones count."""
    attention_sizes: tuple[Annotated[int, Range(0, 13)], ...] = (0,)
    """Sizes at which attention follows each block of --network vqgan, counted from that of the code grid, 0."""
    middle_attention: bool = True
    """Attention between the two middle blocks of --network vqgan."""
    latent_channels: Annotated[int, Range(1, MAX_WIDTH)] = 256
    """Channels of --network vqgan between its encoder or decoder and the convolutions next to the codes."""
    latent_kernel: Annotated[int, OneOf((1, 3), "1 or 3")] = 1
    """Kernel size of the convolutions next to the codes in --network vqgan."""
    norm_groups: Annotated[int, Range(1, MAX_WIDTH)] | None = None
    """Groups of channels in the normalizations of --network vqgan. By default 32, or fewer if there are few
    channels."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.channel_multipliers:
            raise InputError("`channel_multipliers` of none: give at least one, for example 1 1 2 2 4")
