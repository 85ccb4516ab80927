"""The VQ-VAE (van den Oord, Vinyals, Kavukcuoglu 2017): image → codes → image.

Shapes: b batch, c channels, H W image, h w code grid (h = ⌈H / downsampling⌉), D embedding_dim, K num_embeddings; codes
(b, h, w), one for each grid of the quantizer.
"""

from dataclasses import asdict, fields
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from codegrid.budget import check_memory
from codegrid.codes import Codes, Condition, Losses, Moment, Sides, Signal
from codegrid.errors import InputError
from codegrid.limits import Range, check_value, make_options, short
from codegrid.model_folder import ModelFolder
from codegrid.noise import Noise
from codegrid.protocols import NO_CONDITION, Reconstructed
from codegrid.registry import TABLES
from codegrid.tensors import check_images

from .networks import Decoder, Encoder
from .options import VQVAEOptions
from .reconstruction import RECONSTRUCTIONS, PixelLikelihood

RGB = Signal()
IMAGE_CHANNELS = (1, 3)
WORKED_ON = 3  # tensors of the decoder's largest layer at once: they are half the image's size, and half as wide


class VQVAE(ModelFolder, nn.Module):
    """A VQ-VAE, which turns images into codes and back.

    Args:
        signal: channels, 1 or 3, and size (H, W) of the images that it is trained on; `decode` returns this size. A
            dict of its fields is accepted, too.
        data_variance: variance of the training images, in the range [-1, 1]; scales the reconstruction term.
        quantizer: a name in `QUANTIZERS`.
        options: those of the networks, `hidden_channels`, `residual_channels`, `num_residual_blocks`, `downsampling`;
            `reconstruction`, a name in `RECONSTRUCTIONS`; and those of the quantizer, `num_embeddings`, ...

    Raises `InputError` if an option is unknown or a value is out of range.

    Examples:
        >>> model = VQVAE(Signal(channels=3, size=(32, 32)), num_embeddings=512, downsampling=4, hidden_channels=16)
        >>> (codes,) = model.encode(torch.zeros(2, 3, 32, 32))
        >>> codes.shape
        torch.Size([2, 8, 8])
        >>> model.decode((codes,)).shape
        torch.Size([2, 3, 32, 32])
    """

    kind: ClassVar[str] = "tokenizer"
    options: ClassVar[type] = VQVAEOptions

    def __init__(
        self, signal: Signal | dict[str, Any] = RGB, data_variance: float = 1.0, quantizer: str = "ema", **options: Any
    ) -> None:
        super().__init__()
        self.signal = signal if isinstance(signal, Signal) else Signal(**signal)
        if len(self.signal.size) != 2 or self.signal.channels not in IMAGE_CHANNELS:
            raise InputError(f"`signal` {short(signal)}: a VQ-VAE needs images, of 1 or 3 channels and (height, width)")
        check_value("data_variance", data_variance, Annotated[float, Range(1e-12)])
        TABLES["quantizer"].check(quantizer)
        ours = {field.name for field in fields(self.options)}
        settings = make_options(self.options, {k: v for k, v in options.items() if k in ours}, "VQVAE")
        of_quantizer = {name: value for name, value in options.items() if name not in ours}

        self.data_variance = data_variance
        self.downsampling: int = settings.downsampling
        self.quantizer = TABLES["quantizer"][quantizer](**of_quantizer)
        self.encoder = Encoder(self.signal.channels, self.quantizer.embedding_dim, settings)
        self.reconstruction = RECONSTRUCTIONS[settings.reconstruction](self.signal.channels, data_variance)
        self.decoder = Decoder(self.reconstruction.outputs, self.quantizer.embedding_dim, settings)
        self.layout = self.quantizer.layout(self._sites(self.signal.size))
        self.config = {
            "signal": self.signal.as_json(),
            "data_variance": data_variance,
            "quantizer": quantizer,
            **asdict(settings),
            # without a `config`, a quantizer is rebuilt from the options that it was given
            **getattr(self.quantizer, "config", of_quantizer),
        }
        self.provenance: dict[str, Any] = {}

    def forward(self, x: torch.Tensor, given: Condition = NO_CONDITION, moment: Moment | None = None) -> Reconstructed:
        """Return reconstructions, codes and the losses of Eq. 3 for x (b, c, H, W) in [-1, 1]; `given` is not used."""
        vectors, codes, losses = self.quantizer(self.encoder(self._pad(x)), moment)
        outputs = self._crop(self.decoder(vectors), x.shape[2:])
        # −log p(x | z_q); `mse` is that of a Gaussian with the data's variance, up to constants
        terms = {"reconstruction_loss": self.reconstruction.loss(outputs, x), **losses.terms}
        return Reconstructed(self.reconstruction.image(outputs), codes, Losses(terms, losses.figures))

    @torch.no_grad()
    def encode(self, x: torch.Tensor) -> Codes:
        """Return the codes (b, h, w) int64, one tensor for each grid, of x (b, c, H, W) in [-1, 1]. Changes no state.

        Raises `InputError` if x is not a batch of images with the right channels and range.
        """
        check_images("x", x)
        return self.quantizer.encode(self.encode_latents(x.to(next(self.encoder.parameters()).dtype)))

    @torch.no_grad()
    def decode(
        self, codes: Codes, size: Sides | None = None, given: Condition = NO_CONDITION, noise: Noise | None = None
    ) -> torch.Tensor:
        """Return images (b, c, H, W), roughly in [-1, 1], for codes (b, h, w), one tensor for each grid.

        `size` is the (H, W) to crop to: by default that of `signal` if the codes have the grids of such images,
        otherwise the grid times the down-sampling factor. Nothing here is random.

        Raises `InputError` if a code or the number of grids is not one of this tokenizer's, or memory is too small.
        """
        outputs = self._decode(codes)
        as_trained = all(of_grid.shape[1:] == grid.shape for of_grid, grid in zip(codes, self.layout, strict=True))
        size = size or (self.signal.size if as_trained else outputs.shape[2:])
        return self.reconstruction.image(self._crop(outputs, size))

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Encode x (b, c, H, W) in [-1, 1] and decode it again, in its own size.

        Raises `InputError` as `encode` does.
        """
        return self.decode(self.encode(x), tuple(x.shape[2:]))

    def encode_latents(self, x: torch.Tensor) -> torch.Tensor:
        """Return the latents (b, D, h, w) of x (b, c, H, W) in [-1, 1] before they are quantized, with gradient.

        Raises `InputError` if x is not a batch of images with the right channels.
        """
        self._check_shape(x)
        return self.encoder(self._pad(x))

    def decode_latents(self, latents: torch.Tensor, quantize: bool) -> torch.Tensor:
        """Return images (b, c, H, W) for latents (b, D, h, w), quantized first if `quantize`, with gradient.

        Raises `InputError` if the latents have a different D.
        """
        if latents.ndim != 4 or latents.shape[1] != self.quantizer.embedding_dim:
            needed = self.quantizer.embedding_dim
            raise InputError(f"`latents` have the shape {tuple(latents.shape)}: it must be (b, {needed}, h, w)")
        images = self.reconstruction.image(self.decoder(self.quantizer(latents).vectors if quantize else latents))
        as_trained = tuple(latents.shape[2:]) == self._sites(self.signal.size)
        return self._crop(images, self.signal.size if as_trained else images.shape[2:])

    @torch.no_grad()
    def nll(self, x: torch.Tensor, codes: Codes, given: Condition = NO_CONDITION) -> torch.Tensor | None:
        """Return −log p(x | codes), (b,) in nats, of 8-bit images (b, c, H, W) in [-1, 1], given their codes (b, h, w).

        Returns None if `reconstruction` is not a likelihood, as with `mse` and `l1`.

        Raises `InputError` if codes or images do not fit this tokenizer, or each other.
        """
        if not isinstance(self.reconstruction, PixelLikelihood):
            return None
        self._check_shape(x)
        check_images("x", x)
        outputs = self._crop(self._decode(codes), x.shape[2:])
        for number, grid in enumerate(self.quantizer.layout(self._sites(x.shape[2:]))):
            found, needed = tuple(codes[number].shape), (len(x), *grid.shape)
            if found != needed:
                raise InputError(f"`codes` of grid {number} have the shape {found}: those of `x` have {needed}")
        return self.reconstruction.nll(outputs, x)

    @torch.no_grad()
    def preview(self, codes: Codes, drawn: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return images (b, c, H, W) for codes (b, h, w), of which only some are drawn: (b, h, w) bool.

        An image is 0 (grey) where no grid has a code; where only some have one, the others add as little as possible.
        """
        # for codes that are not drawn: the one whose vector is nearest to zero, or 0 if vectors cannot be listed
        tables = [self.quantizer.entries(grid) for grid in range(len(codes))]
        quietest = [0 if table is None else int(table.norm(dim=1).argmin()) for table in tables]
        parts = zip(drawn, codes, quietest, strict=True)
        images = self.decode(tuple(torch.where(known, code, quiet) for known, code, quiet in parts))
        padded = [side * self.downsampling for side in self._sites(images.shape[2:])]
        of_grids = [F.interpolate(known[:, None].float(), padded, mode="nearest-exact") for known in drawn]
        shown = torch.stack(of_grids).amax(0)
        return torch.where(self._crop(shown, images.shape[2:]) > 0, images, 0)

    def kept_sites(self, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return, for each grid, the sites (h, w) bool whose own square of pixels is entirely in `mask` (H, W) bool.

        The encoder sees further than that: codes beside unknown pixels depend on these a little.

        Raises `InputError` if the mask does not have the size of the images.
        """
        if tuple(mask.shape) != self.signal.size:
            raise InputError(f"`mask` has the shape {tuple(mask.shape)}, but images are {self.signal.size}")
        unknown = self._pad((~mask.bool()).float()[None, None])
        sites = F.max_pool2d(unknown, self.downsampling)
        # a coarser grid's site covers whole sites of the latents: some lie under two of them
        return tuple(F.adaptive_max_pool2d(sites, grid.shape)[0, 0] == 0 for grid in self.layout)

    def after_step(self, step: int, seed: int) -> None:
        """Move the codebook, once for all pieces of a step."""
        self.quantizer.after_step(step, seed)

    def _decode(self, codes: Codes) -> torch.Tensor:
        """Return what the decoder makes of codes, not cropped yet."""
        self._check_codes(codes)
        self._check_memory(codes)
        return self.decoder(self.quantizer.look_up(tuple(of_grid.long() for of_grid in codes)))

    def _check_shape(self, x: torch.Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.signal.channels:
            raise InputError(f"`x` has the shape {tuple(x.shape)}: it must be (b, {self.signal.channels}, H, W)")

    def _check_codes(self, codes: Codes) -> None:
        if isinstance(codes, torch.Tensor) or len(codes) != len(self.layout):
            found = "one tensor" if isinstance(codes, torch.Tensor) else f"a tuple of {len(codes)}"
            raise InputError(f"`codes` is {found}: it must be a tuple of {len(self.layout)}, a tensor for each grid")
        for number, (of_grid, grid) in enumerate(zip(codes, self.layout, strict=True)):
            if of_grid.dtype == torch.bool or of_grid.is_floating_point():
                kind = str(of_grid.dtype).removeprefix("torch.")
                raise InputError(f"`codes` of grid {number} are {kind}: they must be whole numbers")
            if of_grid.ndim != 1 + len(grid.shape):
                raise InputError(f"`codes` of grid {number} have the shape {tuple(of_grid.shape)}, not (b, h, w)")
            if not of_grid.numel():
                continue
            least, largest = int(of_grid.min()), int(of_grid.max())
            if not 0 <= least <= largest < grid.num_embeddings:
                code = largest if largest >= grid.num_embeddings else least
                raise InputError(f"code {code} in grid {number}: its codes are 0 to {grid.num_embeddings - 1}")

    def _check_memory(self, codes: Codes) -> None:
        """Refuse more images at once than this machine can decode."""
        if self.device.type == "cpu":  # other devices raise their own errors
            pixels = max(of_grid.numel() for of_grid in codes) * self.downsampling**2
            floats = WORKED_ON * pixels * max(self.reconstruction.outputs, self.config["hidden_channels"] // 8)
            check_memory(f"{len(codes[0]):,} decoded images", 4 * floats, "decode fewer at once (`batch_size`)")

    def _sites(self, size: Sides) -> Sides:
        """Return (h, w) of the latents of images (H, W)."""
        return tuple(-(-side // self.downsampling) for side in size)

    def _pad(self, images: torch.Tensor) -> torch.Tensor:
        """Repeat the last row and column up to the next multiple of the down-sampling factor."""
        height, width = images.shape[-2:]
        bottom, right = -height % self.downsampling, -width % self.downsampling
        return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images

    @staticmethod
    def _crop(images: torch.Tensor, size: Sides) -> torch.Tensor:
        return images[..., : size[0], : size[1]]
