"""Options of tokenizers and quantizers, with their ranges. Command lines are built from them, without torch.

The docstring below a field is the help of its flag.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from codegrid.errors import InputError
from codegrid.limits import MAX_ENTRIES, MAX_SIDE, MAX_WIDTH, AtStart, OneOf, Range, check_fields
from codegrid.registry import NameOf

from .quantizers.factors import Factors

Factor = Annotated[int, OneOf(tuple(2**i for i in range(14)), f"a power of two: 1, 2, 4, 8, ... {MAX_SIDE:,}")]
Step = Annotated[int, OneOf(tuple(2**i for i in range(1, 14)), f"a power of two: 2, 4, 8, ... {MAX_SIDE:,}")]
PowerOfTwo = Annotated[int, OneOf(tuple(2**i for i in range(1, 25)), f"a power of two: 2, 4, 8, ... {MAX_ENTRIES:,}")]
NumFactors = Annotated[int, Range(1, 24)]
Distance = Literal["euclidean", "cosine"]
MAX_BOOKS = 256  # codebooks of a quantizer
Anchors = Literal["random", "closest", "probabilistic"]
Estimator = Literal["straight-through", "rotation"]
# one type for images and sound, as both have the same flag
Reconstruction = Literal["mse", "l1", "logistic", "coupled-logistic", "logit-laplace", "mu-law", "spectral"]
OF_IMAGES = ("mse", "l1", "logistic", "coupled-logistic", "logit-laplace", "mu-law")
OF_SOUND = ("mse", "l1", "mu-law", "spectral")


@dataclass(frozen=True)
class ImageOptions:
    """Options of tokenizers of images: their networks, and how images are compared.

    Raises `InputError` if the reconstruction term is one of sound.
    """

    network: Annotated[str, NameOf("network")] = "paper"
    """Encoder and decoder. paper: those of the VQ-VAE paper, small and fast; resnet: those of VQ-GAN, larger, with
    normalization, attention over all sites, and no transposed convolutions; vqgan: the same with all sizes free;
    notebook: the paper's as public notebooks compute them; dalle: those of DALL·E's
    discrete VAE. The last three are for checkpoints of other projects."""
    hidden_channels: Annotated[int, Range(2, MAX_WIDTH)] = 128
    """Channels of the encoder and the decoder; fewer where there are more pixels than codes."""
    reconstruction: Reconstruction = "mse"
    """Reconstruction term. mse: squared error over the data's variance; l1: absolute error over its standard deviation;
    logistic, coupled-logistic, logit-laplace: nats per value of a likelihood of 8-bit images; evaluate reports it;
    mu-law: nats of the 256 classes of a value, as of sound in telephony; spectral: of sound, l1 and the distance of
    spectrograms of three resolutions."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.reconstruction not in OF_IMAGES:
            raise InputError(f"`reconstruction` {self.reconstruction}: for images choose one of {', '.join(OF_IMAGES)}")


@dataclass(frozen=True)
class VQVAEOptions(ImageOptions):
    """Options of the VQ-VAE."""

    downsampling: Factor = 4
    """Image side divided by code grid side: a power of two."""


@dataclass(frozen=True)
class HierarchicalOptions(ImageOptions):
    """Options of the VQ-VAE-2: its levels, its networks, and how its coarser grids get something to do.

    Raises `InputError` if there is no level, or an option for each level does not have one value for each.
    """

    levels: tuple[Step, ...] = (4, 2)
    """Factors of the levels of codes, from the image on: side of the image divided by that of the finest grid, side of
    that grid divided by that of the next coarser one, and so on."""
    level_quantizers: tuple[Annotated[str, NameOf("quantizer")], ...] | None = None
    """Quantizer of each level, coarse to fine. By default all have --quantizer."""
    level_embeddings: tuple[Annotated[int, Range(1, MAX_ENTRIES)], ...] | None = None
    """Number K of codebook entries of each level, coarse to fine. By default all have --num-embeddings."""
    finer_dropout: Annotated[float, Range(0, 1)] = 0.05
    """Share of the images of a training step of which the decoder sees only the coarsest grids, a random number of
    them. Without it the finest grid takes over, and the coarse ones mean nothing to the decoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        factors = " ".join(map(str, self.levels)) or "of none"
        if not self.levels or math.prod(self.levels) > MAX_SIDE:
            raise InputError(f"`levels` {factors}: give at least one, with a product of at most {MAX_SIDE:,}")
        for name in ("level_quantizers", "level_embeddings"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.levels):
                words = f"{len(self.levels)} are needed, one for each of the `levels` {factors}, coarse to fine"
                raise InputError(f"`{name}` {' '.join(map(str, values)) or 'of none'}: {words}")


@dataclass(frozen=True)
class CodesOptions:
    """Options of the tokenizer over another tokenizer's codes, besides those of its decoder."""

    hidden_channels: Annotated[int, Range(2, MAX_WIDTH)] = 64
    """Channels of the encoder and the decoder."""
    num_latents: Annotated[int, Range(1, MAX_BOOKS)] = 3
    """Latents of an image. Each has a codebook of its own; a quantizer that is not a single codebook quantizes all of
    them as one vector."""
    decoder: Annotated[str, NameOf("prior")] = "pixelcnn"
    """Prior that draws the codes, given the latents; its options are also those of --model codes."""
    reconstruction_weight: Annotated[float, Range(above=0)] = 1.0
    """Weight of the nats of an image's codes against the quantizer's terms. 1: both are sums over an image, as in Eq. 3
    of the paper."""
    auxiliary_weight: Annotated[float, Range(0)] = 0.0
    """Weight, in the same units, of an auxiliary head that predicts every code from the latents alone, in case that the
    decoder, which also sees earlier codes, ignores them. 0: no such head."""


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
    """Entries used less than this share of uniform use move to random latents; 0: never. By default 0.3, but 0 for
    --quantizer clustered."""
    distance: Distance = "euclidean"
    """Distance by which the nearest entry is found. cosine only affects the choice; entries are not normalized."""
    kmeans_steps: Annotated[int, Range(0, 2**31), AtStart()] = 0
    """In this many steps at the start, set the codebook to the k-means of the batch's latents."""
    estimator: Estimator = "straight-through"
    """How the gradient reaches the latents. straight-through: unchanged; rotation: rotated and scaled as each latent
    must be to become its entry."""


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
    """Weight of KL(p ‖ uniform) for --quantizer gumbel, in nats, as a mean over sites. The larger it is, the more
    random are the choices."""
    final_temperature: Annotated[float, Range(above=0, high=1)] = 1 / 16
    """Temperature τ that --quantizer gumbel goes down to, from 1. The lower it is, the less it mixes entries."""
    hard_samples: bool = False
    """In training, give the decoder a single drawn entry (straight-through) instead of a mixture of entries."""


@dataclass(frozen=True)
class MultiCodebookOptions:
    """Options of quantizers with several codebooks. Those of the quantizer named by `codebook` apply to each one."""

    num_quantizers: Annotated[int, Range(1, MAX_BOOKS)] = 2
    """Codebooks, each with a code at each site. residual: each quantizes what those before it left over; product: each
    quantizes its part of a latent."""
    codebook: Annotated[str, NameOf("quantizer")] = "ema"
    """Quantizer that learns each of several codebooks; it must have a codebook."""


@dataclass(frozen=True)
class ProductOptions(MultiCodebookOptions):
    """Options of the product quantizer."""


@dataclass(frozen=True)
class ResidualOptions(MultiCodebookOptions):
    """Options of the residual quantizer. Raises `InputError` if there are more than 256 codebooks."""

    num_groups: Annotated[int, Range(1, MAX_BOOKS)] = 1
    """Parts of a latent, each with residual codebooks of its own. A site then has this many codes times
    --num-quantizers."""
    shared: bool = False
    """Use one residual codebook at all depths."""
    codes_dropout: Annotated[float, Range(0, 1)] = 0.0
    """Share of the images of a training step that use only the first residual codebooks, a random number of them. So
    the first codes alone give a coarser image."""
    codes_temperature: Annotated[float, Range(0)] = 0.0
    """In training, draw residual codes with probability softmax(-squared distance / temperature). 0: take the nearest
    entry."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_quantizers * self.num_groups > MAX_BOOKS:
            words = f"times `num_quantizers` {self.num_quantizers} is more than {MAX_BOOKS} codebooks: choose fewer"
            raise InputError(f"`num_groups` {self.num_groups}: {words}")


@dataclass(frozen=True)
class MultiscaleOptions:
    """Options of the multi-scale residual quantizer. Those of the quantizer named by `codebook` apply to its codebook.

    Raises `InputError` if the scales do not grow.
    """

    scales: tuple[Annotated[int, Range(1, MAX_SIDE)], ...] | None = None
    """Longer sides of the code grids, coarse to fine; the last one is the side of the latents. By default 1 2 4 ... up
    to that side."""
    codebook: Annotated[str, NameOf("quantizer")] = "ema"
    """Quantizer that learns the codebook of all scales; it must have a codebook."""
    num_phi: Annotated[int, Range(1, 64)] = 4
    """Number of convolutions φ that repair enlarged scales; neighbouring scales share one."""
    phi_share: Annotated[float, Range(0, 1)] = 0.5
    """Share ρ of the convolution in φ(x) = (1 − ρ) x + ρ (weight ∗ x + bias)."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.scales is not None and (not self.scales or any(b <= a for a, b in pairwise(self.scales))):
            given = " ".join(map(str, self.scales)) or "of none"
            raise InputError(f"`scales` {given}: each must be larger than the one before, as in 1 2 4 8")


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
    """Options of lookup-free quantization. Raises `InputError` if a value is out of range."""

    num_embeddings: PowerOfTwo = 512
    """Number K of codes, a power of two."""
    num_factors: NumFactors | None = None
    """Grids of one shape that share the code of a site, so that a prior can learn it. By default as few as have at most
    4,096 codes each."""
    commitment_cost: Annotated[float, Range(0)] = 0.25
    """Weight β of the commitment loss."""
    entropy_weight: Annotated[float, Range(0)] = 0.1
    """Weight λ of the entropy terms of binary codes: a clear choice at each site, all codes in use over the batch."""
    diversity_gamma: Annotated[float, Range(0)] = 1.0
    """Weight γ of the second entropy term, the use of all codes, relative to the first."""
    entropy_temperature: Annotated[float, Range(1e-6)] = 1.0
    """Temperature τ of the probabilities behind the entropies: exp(-‖z - c‖²/τ) for latent z and a code's vector c."""

    def __post_init__(self) -> None:
        check_fields(self)
        Factors((2,) * (self.num_embeddings.bit_length() - 1), self.num_factors)


@dataclass(frozen=True)
class BSQOptions(LFQOptions):
    """Options of binary spherical quantization. Raises `InputError` if a value is out of range."""

    commitment_cost: Annotated[float, Range(0)] = 0.0
    """Weight β of the commitment loss."""
