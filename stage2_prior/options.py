"""Options of the priors. Command lines are built from them, so torch is not imported."""

from dataclasses import dataclass
from typing import Annotated

from codegrid.limits import MAX_KERNEL, MAX_LAYERS, MAX_WIDTH, OneOf, Range
from codegrid.registry import TABLES
from codegrid.sampling_config import (
    ChoiceTemperature,
    GuidanceSchedule,
    InferenceSteps,
    MaskSchedule,
    Solver,
    UnmaskOrder,
)

MAX_LEVELS = 8  # of a UNet
MAX_FRAMES = 64  # that a prior is given

Kernel = Annotated[int, OneOf(range(3, MAX_KERNEL + 1, 2), f"an odd number from 3 to {MAX_KERNEL}")]
Share = Annotated[float, Range(0, below=1)]


@dataclass(frozen=True)
class GivenOptions:
    """Options of a prior that can be conditioned on coarser grids; without them they have no effect."""

    coarse_dropout: Share = 0.05
    """Share of the coarser codes that are hidden in training, if the prior is conditioned on coarser grids. It teaches
    the prior not to depend on each of them, as some of those that it meets in sampling will be mistakes. 0: every
    sample needs all coarser codes."""


@dataclass(frozen=True)
class CoarserOptions(GivenOptions):
    """Options of a prior with a network of its own that reads the coarser grids."""

    condition_blocks: Annotated[int, Range(0, MAX_LAYERS)] = 3
    """Residual blocks at each coarser size of the network that reads the coarser grids."""
    condition_channels: Annotated[int, Range(1, MAX_WIDTH)] = 64
    """Channels of the network that reads the coarser grids."""


@dataclass(frozen=True)
class TextOptions:
    """Options of a prior that can be asked in words; without texts they have no effect."""

    caption_dropout: Share = 0.1
    """Share of the captions that are hidden in training, so that the prior also learns to draw without a text, as
    guidance requires. 0: every sample needs a prompt."""
    text_layers: Annotated[int, Range(0, MAX_LAYERS)] = 2
    """Layers in which the words of a text see each other, before the codes see them."""


def readers_of_texts() -> str:
    """Return words that name the priors that can be conditioned on texts."""
    table = TABLES["prior"]
    names = [name for name in table if issubclass(table.options(name), TextOptions)]
    return f"{', '.join(names)} priors can be"


@dataclass(frozen=True)
class GatedSizes:
    """Options that every prior made of gated layers has."""

    channels: Annotated[int, Range(1, MAX_WIDTH)] = 64
    """Channels of the prior's features."""
    num_layers: Annotated[int, Range(1, MAX_LAYERS)] = 15
    """Gated layers, including the first."""
    first_kernel: Kernel = 7
    """Kernel size of the first layer."""
    kernel: Kernel = 3
    """Kernel size of the layers; of a gated PixelCNN, after the first."""
    dropout: Share = 0.1
    """Share of the input codes that are hidden in training. It keeps the prior from memorizing a small data set and
    teaches it to continue imperfect grids, such as its own samples."""
    label_dropout: Share = 0.1
    """Share of the labels that are hidden in training, so that the prior also learns to draw without a label, as
    guidance requires. 0: every sample needs a label."""


@dataclass(frozen=True)
class PixelCNNOptions(GatedSizes, CoarserOptions):
    """Options of the gated PixelCNN."""


@dataclass(frozen=True)
class VideoOptions(GatedSizes):
    """Options of the prior over the next frame of a video."""

    num_layers: Annotated[int, Range(1, MAX_LAYERS)] = 8
    """Gated layers, including the first."""
    context_frames: Annotated[int, Range(1, MAX_FRAMES)] = 6
    """Earlier frames, with their actions, that the prior is given."""
    frame_channels: Annotated[int, Range(1, MAX_WIDTH)] = 32
    """Channels of the embedding of each earlier frame."""
    condition_blocks: Annotated[int, Range(0, MAX_LAYERS)] = 4
    """Gated layers of the network that reads the earlier frames."""
    condition_channels: Annotated[int, Range(1, MAX_WIDTH)] = 64
    """Channels of the network that reads the earlier frames."""
    coarse_dropout: Share = 0.05
    """Share of the codes of earlier frames that are hidden in training. It teaches the prior to continue frames that it
    drew itself, some of whose codes are mistakes."""
    frame_dropout: Share = 0.1
    """Share of the frames that are given fewer earlier frames in training, any number down to none, so that the prior
    can also start from a few."""


@dataclass(frozen=True)
class TransformerSizes:
    """Options that every prior made of transformer layers has."""

    channels: Annotated[int, Range(1, MAX_WIDTH)] = 128
    """Channels of the prior's features."""
    num_layers: Annotated[int, Range(1, MAX_LAYERS)] = 6
    """Layers of the prior, each of attention and a feed-forward network."""
    num_heads: Annotated[int, Range(1, MAX_WIDTH)] = 4
    """Heads of the attention; the channels are a multiple of twice their number."""
    label_dropout: Share = 0.1
    """Share of the labels that are hidden in training, so that the prior also learns to draw without a label, as
    guidance requires. 0: every sample needs a label."""


@dataclass(frozen=True)
class TransformerOptions(TransformerSizes, CoarserOptions, TextOptions):
    """Options of the causal transformer."""

    feature_dropout: Share = 0.1
    """Share of the features that are dropped in training: of the embedded codes, and of what each layer adds."""


@dataclass(frozen=True)
class GPTOptions(TransformerSizes, CoarserOptions):
    """Options of the prior with the layers of GPT-2."""

    feature_dropout: Share = 0.1
    """Share of the features that are dropped in training: of the embedded codes, and of what each layer adds."""


@dataclass(frozen=True)
class PixelSNAILOptions(CoarserOptions):
    """Options of PixelSNAIL."""

    channels: Annotated[int, Range(1, MAX_WIDTH)] = 64
    """Channels of the prior's features."""
    num_blocks: Annotated[int, Range(1, MAX_LAYERS)] = 2
    """Blocks of the prior: residual layers, then attention over all earlier sites."""
    layers_per_block: Annotated[int, Range(1, MAX_LAYERS)] = 3
    """Residual layers in each block, of two convolutions each."""
    num_heads: Annotated[int, Range(1, MAX_WIDTH)] = 4
    """Heads of the attention."""
    head_channels: Annotated[int, Range(1, MAX_WIDTH)] = 16
    """Channels of each head's queries, keys and values."""
    kernel: Annotated[int, Range(2, MAX_KERNEL)] = 2
    """Kernel size of the layers."""
    feature_dropout: Share = 0.1
    """Share of the features that are dropped between the two convolutions of a layer in training."""
    label_dropout: Share = 0.1
    """Share of the labels that are hidden in training, so that the prior also learns to draw without a label, as
    guidance requires. 0: every sample needs a label."""


@dataclass(frozen=True)
class WaveNetOptions(CoarserOptions):
    """Options of the WaveNet."""

    channels: Annotated[int, Range(1, MAX_WIDTH)] = 32
    """Channels of the prior's features."""
    skip_channels: Annotated[int, Range(1, MAX_WIDTH)] = 64
    """Channels that each layer adds to what the logits are made of."""
    layers_per_cycle: Annotated[int, Range(1, 20)] = 8
    """Layers of a cycle; their dilations are 1, 2, 4, ..., so that each doubles the number of codes that are seen."""
    num_cycles: Annotated[int, Range(1, MAX_LAYERS)] = 2
    """Cycles of layers, one after the other."""
    feature_dropout: Share = 0.0
    """Share of the features that are dropped in training, of the embedded codes."""
    label_dropout: Share = 0.1
    """Share of the labels that are hidden in training, so that the prior also learns to draw without a label, as
    guidance requires. 0: every sample needs a label."""


@dataclass(frozen=True)
class NextScaleOptions(TransformerSizes):
    """Options of the next-scale prior."""

    feature_dropout: Share = 0.1
    """Share of the features that are dropped in training, of what each layer adds."""


@dataclass(frozen=True)
class MaskGITOptions(TransformerSizes, GivenOptions, TextOptions):
    """Options of MaskGIT; the last five say how it draws unless a command says otherwise."""

    feature_dropout: Share = 0.1
    """Share of the features that are dropped in training: of the embedded codes, and of what each layer adds."""
    label_smoothing: Share = 0.0
    """Share of the probability that training gives to all codes alike."""
    learns_shown: bool = False
    """Also learn to repeat the codes that are not hidden."""
    mask_schedule: MaskSchedule = "cosine"
    """How the number of sites that are not drawn yet falls to 0; in training, how many codes are hidden."""
    num_inference_steps: InferenceSteps = 8
    """Steps in which a sample is drawn; never more than it has sites."""
    choice_temperature: ChoiceTemperature = 4.5
    """Randomness of which sites are drawn first, if by confidence. It falls to 0 at the last step."""
    unmask_order: UnmaskOrder = "confidence"
    """Which sites are drawn first: those of the likeliest codes, sites spread evenly over the grid, or any."""
    guidance_schedule: GuidanceSchedule = "growing"
    """How a guidance scale above 1 applies to the steps: constant, or growing from 1 to it."""


@dataclass(frozen=True)
class DiffusionOptions(TextOptions):
    """Options of the diffusion prior; the last two say how it draws unless a command says otherwise."""

    channels: Annotated[int, Range(1, MAX_WIDTH)] = 64
    """Channels of the prior's features; of the UNet, at the full size of the grid, and twice as many at each half."""
    num_levels: Annotated[int, Range(1, MAX_LEVELS)] = 2
    """Sizes of the grid that the UNet works at, each half the one before."""
    one_scale: bool = False
    """Scale all channels of the codes' vectors by one number, as the pipelines of diffusers do (export-model needs
    this), instead of each channel by its own."""
    num_layers: Annotated[int, Range(1, MAX_LAYERS)] = 2
    """Residual blocks of the UNet at each size, on the way down; on the way up there is one more."""
    num_heads: Annotated[int, Range(1, MAX_WIDTH)] = 4
    """Heads of the attention."""
    label_dropout: Share = 0.1
    """Share of the labels that are hidden in training, so that the prior also learns to draw without a label, as
    guidance requires. 0: every sample needs a label."""
    num_inference_steps: Annotated[int, Range(1, 1000)] = 50
    """Steps in which a sample is drawn."""
    solver: Solver = "ddim"
    """How a step is taken: straight (ddim), or bent by the step before (dpm-solver), which needs fewer steps."""
