"""The common part of tokenizers of images: checks, codes in and out, likelihood, previews.

Shapes: b batch, c channels, H W image, n decoder channels, D embedding_dim of a level, *sites its latents, *shape the
sites of each grid.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from codegrid.budget import check_memory
from codegrid.codes import Codes, Condition, Latents, Layout, Losses, Moment, Sides, Signal
from codegrid.errors import InputError
from codegrid.limits import Range, check_value, short, split_options
from codegrid.model_folder import ModelFolder
from codegrid.noise import Noise
from codegrid.protocols import NO_CONDITION, Network, Reconstructed
from codegrid.registry import TABLES
from codegrid.tensors import check_codes, check_images

from .reconstruction import RECONSTRUCTIONS, PixelLikelihood

RGB = Signal()
IMAGE_CHANNELS = (1, 3)
WORKED_ON = 3  # tensors of the decoder's largest layer at once


class Pass(NamedTuple):
    """Result of the networks for a batch in training."""

    outputs: torch.Tensor  # (b, n, H, W) or larger: of whole sites
    codes: Codes
    losses: Losses  # of the quantizers


class ImageTokenizer(ModelFolder, nn.Module):
    """Base class of tokenizers of images. They have one or more levels: latents with a quantizer each, coarse to fine.

    A subclass creates `quantizer`, and by `network` its encoders and decoders, calls `_settle`, and has `levels`,
    `last_layer`, `run`, `encode_latents` and `to_outputs`.

    Args:
        signal: channels, 1 or 3, and size (H, W) of the images that it is trained on, or a dict of these fields.
        data_variance: variance of the training images, in the range [-1, 1].
        quantizer: a name in `QUANTIZERS`.
        options: those of the class's dataclass `options`, kept in `settings`; those of the `network` that it names; and
            others, kept in `of_quantizer`.
        factors: sides of the image divided by those of each level's latents, coarse to fine.

    Raises `InputError` if a value is out of range.
    """

    kind: ClassVar[str] = "tokenizer"
    options: ClassVar[type]
    quantizer: Any
    layout: Layout
    factors: tuple[int, ...]

    def __init__(
        self, signal: Signal | dict[str, Any], data_variance: float, quantizer: str, options: dict[str, Any]
    ) -> None:
        super().__init__()
        self.signal = signal if isinstance(signal, Signal) else Signal(**signal)
        if len(self.signal.size) != 2 or self.signal.channels not in IMAGE_CHANNELS:
            raise InputError(f"`signal` {short(signal)}: a VQ-VAE needs images, of 1 or 3 channels and (height, width)")
        check_value("data_variance", data_variance, Annotated[float, Range(1e-12)])
        TABLES["quantizer"].check(quantizer)
        self.settings, self.of_quantizer = split_options(self.options, options, type(self).__name__)
        TABLES["network"].check(self.settings.network)
        of_networks, self.of_quantizer = split_options(
            TABLES["network"].options(self.settings.network), self.of_quantizer, f"the {self.settings.network} network"
        )
        self.network: Network = TABLES["network"][self.settings.network](
            self.settings.hidden_channels, **asdict(of_networks)
        )
        settings = {**asdict(self.settings), **asdict(of_networks)}  # as JSON values
        self.data_variance = data_variance
        self.reconstruction = RECONSTRUCTIONS[self.settings.reconstruction](self.signal.channels, data_variance)
        self.config = {
            "signal": self.signal.as_json(), "data_variance": data_variance, "quantizer": quantizer,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
        }  # fmt: skip
        self.provenance: dict[str, Any] = {}

    def _settle(self) -> None:
        """Set the layout, and complete the config, once the quantizer is there."""
        self.layout = self.layout_of(self.signal.size)
        # without a `config`, a quantizer is rebuilt from the options that it was given
        self.config |= getattr(self.quantizer, "config", self.of_quantizer)

    @property
    def levels(self) -> Sequence[Any]:
        """Quantizers of the levels, coarse to fine."""
        raise NotImplementedError

    @property
    def last_layer(self) -> nn.Module:
        """The layer that makes the decoder's outputs: adversarial training compares gradients of its weights."""
        raise NotImplementedError

    def run(self, x: torch.Tensor, moment: Moment | None) -> Pass:
        """Return outputs, codes and losses for x (b, c, H, W)."""
        raise NotImplementedError

    def encode_latents(self, x: torch.Tensor) -> Latents:
        """Return the latents (b, D, *sites) of each level of x (b, c, H, W) in [-1, 1], with gradient.

        Raises `InputError` if x is not a batch of images with the right channels.
        """
        raise NotImplementedError

    def to_outputs(self, vectors: Latents) -> torch.Tensor:
        """Return the decoder's outputs (b, n, H, W), of whole sites, for the vectors (b, D, *sites) of each level."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor, given: Condition = NO_CONDITION, moment: Moment | None = None) -> Reconstructed:
        """Return reconstructions, codes and the losses of Eq. 3 for x (b, c, H, W) in [-1, 1]; `given` is not used."""
        outputs, codes, losses = self.run(x, moment)
        outputs = crop(outputs, x.shape[2:])
        # −log p(x | z_q); `mse` is that of a Gaussian with the data's variance, up to constants
        terms = {"reconstruction_loss": self.reconstruction.loss(outputs, x), **losses.terms}
        return Reconstructed(self.reconstruction.image(outputs), codes, Losses(terms, losses.figures))

    @torch.no_grad()
    def encode(self, x: torch.Tensor) -> Codes:
        """Return the codes (b, *shape) int64, one tensor for each grid, of x (b, c, H, W) in [-1, 1].

        Changes no state. Raises `InputError` if x is not a batch of images with the right channels and range.
        """
        check_images("x", x)
        latents = self.encode_latents(x.to(next(self.parameters()).dtype))
        of_levels = [level.encode(each) for level, each in zip(self.levels, latents, strict=True)]
        return tuple(of_grid for codes in of_levels for of_grid in codes)

    @torch.no_grad()
    def decode(
        self, codes: Codes, size: Sides | None = None, given: Condition = NO_CONDITION, noise: Noise | None = None
    ) -> torch.Tensor:
        """Return images (b, c, H, W), roughly in [-1, 1], for codes (b, *shape), one tensor for each grid.

        `size` is the (H, W) to crop to: by default that of `signal` if the codes have the grids of such images,
        otherwise that of whole sites. Nothing here is random.

        Raises `InputError` if a code or the number of grids is not one of this tokenizer's, or memory is too small.
        """
        outputs = self._decode(codes)
        as_trained = all(of_grid.shape[1:] == grid.shape for of_grid, grid in zip(codes, self.layout, strict=True))
        size = size or (self.signal.size if as_trained else outputs.shape[2:])
        return self.reconstruction.image(crop(outputs, size))

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Encode x (b, c, H, W) in [-1, 1] and decode it again, in its own size.

        Raises `InputError` as `encode` does.
        """
        return self.decode(self.encode(x), tuple(x.shape[2:]))

    def decode_latents(self, latents: Latents, quantize: bool) -> torch.Tensor:
        """Return images (b, c, H, W) for latents (b, D, *sites) of each level, quantized first if `quantize`.

        With gradient. Raises `InputError` if the latents are not one tensor for each level, or have a different D.
        """
        needed = [level.embedding_dim for level in self.levels]
        if isinstance(latents, torch.Tensor) or len(latents) != len(needed):
            found = "one tensor" if isinstance(latents, torch.Tensor) else f"a tuple of {len(latents)}"
            raise InputError(f"`latents` is {found}: it must be a tuple of {len(needed)}, a tensor for each level")
        for each, dim in zip(latents, needed, strict=True):
            if each.ndim != 4 or each.shape[1] != dim:
                raise InputError(f"`latents` have the shape {tuple(each.shape)}: it must be (b, {dim}, h, w)")
        vectors = latents
        if quantize:
            vectors = tuple(level(each).vectors for level, each in zip(self.levels, latents, strict=True))
        images = self.reconstruction.image(self.to_outputs(vectors))
        as_trained = [tuple(each.shape[2:]) for each in latents] == self.sites(self.signal.size)
        return crop(images, self.signal.size if as_trained else images.shape[2:])

    @torch.no_grad()
    def nll(self, x: torch.Tensor, codes: Codes, given: Condition = NO_CONDITION) -> torch.Tensor | None:
        """Return −log p(x | codes), (b,) in nats, of 8-bit images (b, c, H, W) in [-1, 1], given their codes.

        Returns None if `reconstruction` is not a likelihood, as with `mse` and `l1`.

        Raises `InputError` if codes (b, *shape) or images do not fit this tokenizer, or each other.
        """
        if not isinstance(self.reconstruction, PixelLikelihood):
            return None
        self._check_shape(x)
        check_images("x", x)
        outputs = crop(self._decode(codes), x.shape[2:])
        for number, grid in enumerate(self.layout_of(tuple(x.shape[2:]))):
            found, needed = tuple(codes[number].shape), (len(x), *grid.shape)
            if found != needed:
                raise InputError(f"`codes` of grid {number} have the shape {found}: those of `x` have {needed}")
        return self.reconstruction.nll(outputs, x)

    @torch.no_grad()
    def preview(self, codes: Codes, drawn: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return images (b, c, H, W) for codes (b, *shape), of which only some are drawn: (b, *shape) bool.

        An image is 0 (grey) where no grid has a code; where only some have one, the others add as little as possible.
        """
        images = self.decode(fill_in(self.quantizer, codes, drawn))
        size = tuple(images.shape[2:])
        shown = torch.zeros_like(images[:, :1])
        for of_level, sites, factor in zip(self.by_level(drawn), self.sites(size), self.factors, strict=True):
            for known in of_level:
                whole = [side * factor for side in sites]
                pixels = F.interpolate(known[:, None].to(shown.dtype), whole, mode="nearest-exact")
                shown = torch.maximum(shown, crop(pixels, size))
        return torch.where(shown > 0, images, 0)

    def kept_sites(self, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return, for each grid, the sites (*shape) bool whose own pixels are all in `mask` (H, W) bool.

        The encoder sees further than that: codes beside unknown pixels depend a little on what stands in for these, and
        with a network that has attention all codes do.

        Raises `InputError` if the mask does not have the size of the images.
        """
        if tuple(mask.shape) != self.signal.size:
            raise InputError(f"`mask` has the shape {tuple(mask.shape)}, but images are {self.signal.size}")
        kept: list[torch.Tensor] = []
        for grids, factor in zip(self.by_level(self.layout), self.factors, strict=True):
            unknown = F.max_pool2d(pad((~mask.bool()).float()[None, None], factor), factor)
            # a coarser grid's site covers whole sites of the latents: some lie under two of them
            kept += [F.adaptive_max_pool2d(unknown, grid.shape)[0, 0] == 0 for grid in grids]
        return tuple(kept)

    def after_step(self, step: int, seed: int) -> None:
        """Move the codebooks, once for all pieces of a step."""
        self.quantizer.after_step(step, seed)

    def sites(self, size: Sides) -> list[Sides]:
        """Return (h, w) of each level's latents of images (H, W)."""
        return [tuple(-(-side // factor) for side in size) for factor in self.factors]

    def layout_of(self, size: Sides) -> Layout:
        """Return the grids of images (H, W)."""
        of_levels = [level.layout(sites) for level, sites in zip(self.levels, self.sites(size), strict=True)]
        return tuple(grid for layout in of_levels for grid in layout)

    def by_level(self, of_grids: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Return values of all grids as those of each level's grids."""
        rest = iter(of_grids)
        counts = [
            len(level.layout(sites)) for level, sites in zip(self.levels, self.sites(self.signal.size), strict=True)
        ]
        return [tuple(islice(rest, count)) for count in counts]

    def _decode(self, codes: Codes) -> torch.Tensor:
        """Return what the decoder makes of codes, not cropped yet."""
        check_codes("codes", codes, self.layout, any_size=True)
        self._check_memory(codes)
        parts = zip(self.levels, self.by_level(tuple(of_grid.long() for of_grid in codes)), strict=True)
        return self.to_outputs(tuple(level.look_up(of_level) for level, of_level in parts))

    def _check_shape(self, x: torch.Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.signal.channels:
            raise InputError(f"`x` has the shape {tuple(x.shape)}: it must be (b, {self.signal.channels}, H, W)")

    def _check_memory(self, codes: Codes) -> None:
        """Refuse more images at once than this machine can decode."""
        if self.device.type == "cpu":  # other devices raise their own errors
            pixels = max(of_grid.numel() for of_grid in codes) * self.factors[-1] ** 2
            widest = max(self.reconstruction.outputs, self.network.values_per_pixel(self.factors[-1]))
            floats = WORKED_ON * pixels * widest
            check_memory(f"{len(codes[0]):,} decoded images", 4 * floats, "decode fewer at once (`batch_size`)")


def fill_in(quantizer: Any, codes: Codes, drawn: tuple[torch.Tensor, ...]) -> Codes:
    """Return codes (b, *shape) of each grid, with those that are not drawn, (b, *shape) bool, replaced by quiet ones.

    A quiet code is the one whose vector is nearest to zero, or 0 if vectors cannot be listed.
    """
    tables = [quantizer.entries(grid) for grid in range(len(codes))]
    quietest = [0 if table is None else int(table.norm(dim=1).argmin()) for table in tables]
    parts = zip(drawn, codes, quietest, strict=True)
    return tuple(torch.where(known, code, quiet) for known, code, quiet in parts)


def pad(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Repeat the last row and column of images (b, c, H, W) up to the next multiple of a down-sampling factor."""
    height, width = images.shape[-2:]
    bottom, right = -height % factor, -width % factor
    return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images


def crop(images: torch.Tensor, size: Sides) -> torch.Tensor:
    """Cut images (b, c, H, W) off below and on the right."""
    return images[..., : size[0], : size[1]]
