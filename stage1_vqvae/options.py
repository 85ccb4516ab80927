"""Options of tokenizers and quantizers, with their ranges. Command lines are made from them, so torch is not imported.

The docstring below a field is the help of its flag.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from codegrid.errors import InputError
from codegrid.limits import MAX_ENTRIES, MAX_LAYERS, MAX_SIDE, MAX_WIDTH, AtStart, OneOf, Range, check_fields
from codegrid.registry import NameOf

from .quantizers.factors import Factors

Factor = Annotated[int, OneOf(tuple(2**i for i in range(14)), f"a power of two: 1, 2, 4, 8, ... {MAX_SIDE:,}")]
PowerOfTwo = Annotated[int, OneOf(tuple(2**i for i in range(1, 25)), f"a power of two: 2, 4, 8, ... {MAX_ENTRIES:,}")]
NumFactors = Annotated[int, Range(1, 24)]
Distance = Literal["euclidean", "cosine"]
Anchors = Literal["random", "closest", "probabilistic"]


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
class CodebookOptions:
    """Options of quantizers that look up the nearest entry of a codebook."""

    num_embeddings: Annotated[int, Range(1, MAX_ENTRIES)] = 512
    """Number K of codebook entries."""
    embedding_dim: Annotated[int, Range(1, MAX_WIDTH)] = 64
    """Numbers in a codebook entry."""
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


@dataclass(frozen=True)
class ClusteredOptions(CodebookOptions):
    """Options of the online clustered codebook."""

    anchors: Anchors = "probabilistic"
    """Which latents a clustered codebook moves its entries towards. random: random ones; closest: the closest ones;
    probabilistic: random ones, closer ones more often."""
    anchor_once: bool = False
    """Let a clustered codebook move little-used entries in the first step only."""


@dataclass(frozen=True)
class ResidualOptions:
    """Options of the residual quantizer. Those of the quantizer named by `codebook` hold for each codebook."""

    num_quantizers: Annotated[int, Range(1, 256)] = 2
    """Codes at each site: each codebook quantizes what those before it left over."""
    codebook: Annotated[str, NameOf("quantizer")] = "ema"
    """Quantizer that learns each codebook of a residual quantizer; it must have a codebook."""


@dataclass(frozen=True)
class FSQOptions:
    """Options of finite scalar quantization. Raises `InputError` for no level, too many codes or too many factors."""

    fsq_levels: tuple[Annotated[int, Range(2, 1000)], ...] = (8, 8, 8)
    """Levels for each number of a latent, 5 or more for good use; their product is the number of codes."""
    num_factors: NumFactors | None = None
    """Grids of one shape that share the code of a site, so that a prior can learn it. By default as few as have at most
    4,096 codes each."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.fsq_levels or math.prod(self.fsq_levels) > MAX_ENTRIES:
            words = f"give at least one number, with a product of at most {MAX_ENTRIES:,}, for example 8 8 8"
            raise InputError(f"`fsq_levels` {list(self.fsq_levels)}: {words}")
        Factors(self.fsq_levels, self.num_factors)


@dataclass(frozen=True)
class LFQOptions:
    """Options of lookup-free quantization. Raises `InputError` where a value is out of its range."""

    num_embeddings: PowerOfTwo = 512
    """Number K of codes, a power of two."""
    num_factors: NumFactors | None = None
    """Grids of one shape that share the code of a site, so that a prior can learn it. By default as few as have at most
    4,096 codes each."""
    commitment_cost: Annotated[float, Range(0)] = 0.25
    """Weight β of the commitment loss."""
    entropy_weight: Annotated[float, Range(0)] = 0.1
    """Weight λ of the entropy terms of binary codes: one code clearly at each site, and all codes over the batch."""
    diversity_gamma: Annotated[float, Range(0)] = 1.0
    """Weight γ of the second of the entropy terms, the use of all codes, against the first."""
    entropy_temperature: Annotated[float, Range(1e-6)] = 1.0
    """Temperature τ of the probabilities whose entropies these are: exp(-‖z - c‖²/τ) for a latent z and a code's vector
    c."""

    def __post_init__(self) -> None:
        check_fields(self)
        Factors((2,) * (self.num_embeddings.bit_length() - 1), self.num_factors)


@dataclass(frozen=True)
class BSQOptions(LFQOptions):
    """Options of binary spherical quantization. Raises `InputError` where a value is out of its range."""

    commitment_cost: Annotated[float, Range(0)] = 0.0
    """Weight β of the commitment loss."""
