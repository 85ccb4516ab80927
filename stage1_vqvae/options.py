"""Options of tokenizers and quantizers, with their ranges. Command lines are made from them, so torch is not imported.

The docstring below a field is the help of its flag.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from codegrid.errors import InputError
from codegrid.limits import MAX_ENTRIES, MAX_LAYERS, MAX_SIDE, MAX_WIDTH, AtStart, OneOf, Range, check_fields
from codegrid.registry import NameOf

Factor = Annotated[int, OneOf(tuple(2**i for i in range(14)), f"a power of two: 1, 2, 4, 8, ... {MAX_SIDE:,}")]
Distance = Literal["euclidean", "cosine"]
Anchors = Literal["random", "closest", "probabilistic"]
Estimator = Literal["straight-through", "rotation"]


@dataclass(frozen=True)
class VQVAEOptions:
    """Options of the VQ-VAE's networks."""

    hidden_channels: Annotated[int, Range(2, MAX_WIDTH)] = 128
    """Channels of the encoder and the decoder."""
    residual_channels: Annotated[int, Range(1, MAX_WIDTH)] = 32
    """Channels inside a residual block."""
    num_residual_blocks: Annotated[int, Range(0, MAX_LAYERS)] = 2
    """Residual blocks in the encoder, and as many in the decoder."""
    downsampling: Factor = 4
    """Image side divided by code grid side: a power of two."""


@dataclass(frozen=True)
class EntriesOptions:
    """Sizes of a codebook."""

    num_embeddings: Annotated[int, Range(1, MAX_ENTRIES)] = 512
    """Number K of codebook entries."""
    embedding_dim: Annotated[int, Range(1, MAX_WIDTH)] = 64
    """Numbers in a codebook entry."""


@dataclass(frozen=True)
class CodebookOptions(EntriesOptions):
    """Options of quantizers that look up the nearest entry of a codebook."""

    commitment_cost: Annotated[float, Range(0)] = 0.25
    """Weight β of the commitment loss."""
    decay: Annotated[float, Range(1e-6, below=1)] = 0.99
    """Decay γ of the codebook's moving averages."""
    revival_threshold: Annotated[float, Range(0, below=1)] | None = None
    """Entries used less than this share of uniform use move to random latents; 0: never. By default 0.3, for
    --quantizer clustered 0."""
    distance: Distance = "euclidean"
    """Distance by which the nearest entry is found. cosine only affects the choice; entries are not normalized."""
    kmeans_steps: Annotated[int, Range(0, 2**31), AtStart()] = 0
    """In each of this many first steps, set the codebook to the k-means of the batch's latents."""
    estimator: Estimator = "straight-through"
    """How the gradient reaches the latents. straight-through: as it is; rotation: turned and scaled as each latent must
    be to become its entry."""


@dataclass(frozen=True)
class ClusteredOptions(CodebookOptions):
    """Options of the online clustered codebook."""

    anchors: Anchors = "probabilistic"
    """Which latents a clustered codebook moves its entries towards. random: random ones; closest: the closest ones;
    probabilistic: random ones, closer ones more often."""
    anchor_once: bool = False
    """Let a clustered codebook move little-used entries in the first step only."""


@dataclass(frozen=True)
class GumbelOptions(EntriesOptions):
    """Options of the Gumbel-softmax quantizer."""

    kl_weight: Annotated[float, Range(0)] = 5e-3
    """Weight of KL(p ‖ uniform), in nats, a mean over sites: the larger, the more random are the choices of
    --quantizer gumbel."""
    final_temperature: Annotated[float, Range(above=0, high=1)] = 1 / 16
    """Temperature τ that --quantizer gumbel goes down to from 1; the lower, the less entries are mixed."""
    hard_samples: bool = False
    """Give the decoder a single drawn entry in training (straight-through), and not a mixture of entries."""


@dataclass(frozen=True)
class ResidualOptions:
    """Options of the residual quantizer. Those of the quantizer named by `codebook` hold for each codebook."""

    num_quantizers: Annotated[int, Range(1, 256)] = 2
    """Codes at each site: each codebook quantizes what those before it left over."""
    codebook: Annotated[str, NameOf("quantizer")] = "ema"
    """Quantizer that learns each codebook of a residual quantizer; it must have a codebook."""


@dataclass(frozen=True)
class FSQOptions:
    """Options of finite scalar quantization. Raises `InputError` if there is no level, or too many codes."""

    fsq_levels: tuple[Annotated[int, Range(2, 1000)], ...] = (8, 8, 8)
    """Levels for each number of a latent, 5 or more for good use; their product is the number of codes."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.fsq_levels or math.prod(self.fsq_levels) > MAX_ENTRIES:
            words = f"give at least one number, with a product of at most {MAX_ENTRIES:,}, for example 8 8 8"
            raise InputError(f"`fsq_levels` {list(self.fsq_levels)}: {words}")
