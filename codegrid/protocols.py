"""Protocols of the parts. Any class that meets a protocol can be used, including a user's own.

Shapes: b batch, D embedding_dim, *sites the sites of a grid, *shape those of each grid of a layout, K num_embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from .codes import Codes, Condition, Known, Latents, Layout, Losses, Moment, Progress, Sides, Signal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .noise import Noise
    from .sampling_config import SamplingConfig

Likelihood = Literal["exact", "bound", "none"]
Keeps = Literal["first", "any", "roughly", "none"]
NO_CONDITION = Condition()


class Quantized(NamedTuple):
    """Vectors, codes and losses that a quantizer makes from latents (b, D, *sites)."""

    vectors: Tensor  # (b, D, *sites); their gradient reaches the latents
    codes: Codes  # (b, *shape) int64, one for each grid of the quantizer's layout
    losses: Losses


class Reconstructed(NamedTuple):
    """Output, codes and losses that a tokenizer makes from a batch in training."""

    output: Tensor | Codes  # like the input; empty if it would have to be drawn
    codes: Codes
    losses: Losses


class AdamSettings(NamedTuple):
    """Settings of Adam other than its learning rate; with weight decay it is AdamW."""

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0  # of the weights of linear layers and convolutions, and of nothing else


class Codebooks(Protocol):
    """Quantizers of the codes of a layout, as far as others than their tokenizer need them.

    One that does more than add up its entries has a method `tables`, too, which returns tensors by name.
    """

    def entries(self, grid: int) -> Tensor | None:
        """Return the vectors (K, D) of a grid's codes, before any enlarging; None if they cannot be listed."""

    def after_step(self, step: int, seed: int, *purpose: str | int) -> None:
        """Update codebooks from what was recorded, once per step; `purpose` tells codebooks of one model apart."""


class Quantizer(Codebooks, Protocol):
    """Latents → codes → vectors."""

    embedding_dim: int  # D

    def layout(self, sites: Sides) -> Layout:
        """Return the grids of latents with these sites. The first call is for the sites of training."""

    def __call__(self, latents: Tensor, moment: Moment | None = None) -> Quantized:
        """Quantize (b, D, *sites); given a moment, record what `after_step` needs, but not in buffers.

        Without a moment the vectors are exactly those that the codes stand for; with one they may be drawn.
        """

    def encode(self, latents: Tensor) -> Codes:
        """Return the codes of latents (b, D, *sites), without changing any state."""

    def look_up(self, codes: Codes) -> Tensor:
        """Return the vectors (b, D, *sites) that codes stand for."""


class Model(Protocol):
    """A tokenizer, a prior or a classifier; `codegrid.model_folder.ModelFolder` implements most of it."""

    config: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""

    def fingerprint(self) -> str:
        """Return a digest of everything that the outputs depend on."""

    def save_pretrained(self, folder: str | Path, picture: bytes = b"") -> None:
        """Write the model folder; `picture` is a PNG file for its card."""

    def round_to_half(self) -> None:
        """Round all weights to float16, and keep them as float32."""

    def inherit(self, other: Any) -> list[str]:
        """Copy the weights of another model of this class where they fit; return, in words, what stays new."""

    def eval(self) -> Any:
        """Switch to eval mode, which samplers and measurements need."""

    def to(self, device: torch.device | str) -> Any:
        """Move the weights to a device."""


class Tokenizer(Model, Protocol):
    """A signal → codes → the signal. Built as `cls(signal=..., data_variance=..., quantizer=..., **options)`.

    One whose items may end before their window does has a method `hide_padding(codes, lengths)`, too: codes of what
    follows the end become HIDDEN. In training it is told the lengths as `given.lengths`, and padding does not count.
    """

    layout: Layout  # at the trained size
    quantizer: Codebooks  # over all of these grids
    signal: Signal
    data_variance: float  # of the training data, in the range [-1, 1]
    stack: tuple[Any, ...]  # the tokenizers that it consists of, that of images first; itself if it stands alone

    def __call__(self, x: Tensor, given: Condition = NO_CONDITION, moment: Moment | None = None) -> Reconstructed:
        """Run the training pass."""

    def encode(self, x: Tensor) -> Codes:
        """Return the codes of x (b, c, *size) in [-1, 1]."""

    def decode(
        self, codes: Codes, size: Sides | None = None, given: Condition = NO_CONDITION, noise: Noise | None = None
    ) -> Tensor:
        """Return the signal (b, c, *size), roughly in [-1, 1]."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return x encoded and decoded again, in its own size."""

    def encode_latents(self, x: Tensor) -> Latents:
        """Return the latents (b, D, *sites) of each level before they are quantized: one, or several of a hierarchy."""

    def decode_latents(self, latents: Latents, quantize: bool) -> Tensor:
        """Return the signal (b, c, *size) for latents (b, D, *sites) of each level, quantized first if `quantize`."""

    def nll(self, x: Tensor, codes: Codes, given: Condition = NO_CONDITION) -> Tensor | None:
        """Return (b,) nats of a trained decoder likelihood; None if the decoder has none."""

    def preview(self, codes: Codes, drawn: tuple[Tensor, ...]) -> Tensor:
        """Return a picture (b, c, *size) of an unfinished draw: 0 (grey) where nothing is drawn yet."""

    def kept_sites(self, mask: Tensor) -> tuple[Tensor, ...]:
        """Return, for each grid, the sites (*shape) bool whose own pixels are all known, by `mask` (*size) bool.

        Completions keep their codes, and are not given what the unknown pixels showed.
        """

    def after_step(self, step: int, seed: int) -> None:
        """Update codebooks, once per step."""


class Network(Protocol):
    """Encoders and decoders of a tokenizer of images. Built as `cls(hidden_channels, **options)`.

    They take images whose sides `factor`, a power of two, divides. Codes of an image must not depend on its batch.
    """

    def encoder(self, in_channels: int, out_channels: int | None, factor: int) -> torch.nn.Module:
        """Return a module (b, in_channels, H, W) → (b, out_channels, H / factor, W / factor).

        If `out_channels` is None, it returns features, as wide as `hidden_channels`: for a coarser encoder, too.
        """

    def decoder(self, in_channels: int, out_channels: int, factor: int) -> torch.nn.Module:
        """Return a module (b, in_channels, h, w) → (b, out_channels, factor · h, factor · w).

        The last of its `modules()` makes its outputs.
        """

    def enlarger(self, channels: int, factor: int) -> torch.nn.Module:
        """Return a module that only enlarges, (b, channels, h, w) → (b, channels, factor · h, factor · w)."""

    def values_per_pixel(self, factor: int) -> int:
        """Return how many values the largest layer of the decoder of an image has for each pixel."""


class Prior(Model, Protocol):
    """p(codes | condition). Built as `cls(layout=..., grids=..., num_classes=..., **options)`.

    If it can be conditioned on coarser grids, it also takes `given_grids` and `given_layout`; if on features, such as
    the latents of a tokenizer over codes, `given_features`, the number of their channels. If it needs what codes stand
    for, it takes `tables`, the tensors by name that a code dataset keeps beside the codes, and makes do without. One
    that wants another Adam than the default has an attribute `adam`, an `AdamSettings`.

    If it can be conditioned on texts, it takes `num_words`, the size of the vocabulary, and `text_length`, the most
    words of a text, both 0 without texts; and its `text_tokenizer` may be set, which its folder then holds. What
    follows the end of a text in `Condition.text` has no effect. If its options have `label_dropout` and
    `caption_dropout`, it may have classes and texts at once; otherwise it has one of them.

    One over frames of videos has an attribute `context_frames`, how many earlier frames it is given as
    `Condition.codes`, and takes `num_actions`, the number of actions of which it is given one for each.

    One that must see training codes first has a method `prepare(batches)`, called once with batches of its own codes
    (b, *shape) of each grid. One without a likelihood may name a measure to judge it by, lower is better, as
    `criterion`: its method `errors(codes, given, noise)` returns it for each sample (b,), the same for the same noise.
    """

    @property
    def layout(self) -> Layout:
        """Return the grids that it draws."""

    @property
    def grids(self) -> tuple[int, ...]:
        """Return the numbers of these grids in the tokenizer's layout."""

    @property
    def given_grids(self) -> tuple[int, ...]:
        """Return the numbers of the coarser grids that it must be given."""

    @property
    def conditions(self) -> Any:
        """Return the conditions that it accepts: `codegrid.stage2_prior.conditions.Conditions`."""

    @property
    def likelihood(self) -> Likelihood:
        """Return the kind of likelihood that `nll` computes."""

    @property
    def keeps(self) -> Keeps:
        """Return which known sites its sampler can keep.

        `roughly`: any sites, but not their codes, only what these add up to. It needs the codes of all sites for that.
        """

    @property
    def controls(self) -> frozenset[str]:
        """Return the fields of `SamplingConfig` that have an effect on it."""

    def __call__(self, codes: Codes, given: Condition = NO_CONDITION, moment: Moment | None = None) -> Losses:
        """Run the training pass."""

    def nll(
        self,
        codes: Codes,
        given: Condition = NO_CONDITION,
        noise: Noise | None = None,
        num_inference_steps: int | None = None,
    ) -> tuple[Tensor, ...] | None:
        """Return nats at each site, (b, *shape) for each grid, without gradient; None if there is no likelihood."""

    def sample(
        self,
        given: Condition,
        noise: Noise,
        config: SamplingConfig,
        known: Known | None = None,
        backend: str = "auto",
        watch: bool = False,
    ) -> Iterator[Progress]:
        """Draw `noise.count` samples; the last item is the result, and without `watch` the only one."""


class Classifier(Model, Protocol):
    """p(class | image). Built as `cls(signal=..., num_classes=..., **options)`; its provenance names the `classes`."""

    signal: Signal

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features (b, d) of images (b, c, *size) uint8."""

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (b, k) of the classes for features (b, d)."""
