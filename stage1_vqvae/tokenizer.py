"""The VQ-VAE (van den Oord, Vinyals, Kavukcuoglu 2017): image → codes → image.

Shapes: b batch, c channels, H W image, h w code grid (h = ⌈H / downsampling⌉), D embedding_dim, K num_embeddings.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from codegrid.limits import LARGEST_SIDE, MOST_LAYERS, WIDEST, check_name, check_number, check_whole, short
from codegrid.model_folder import ModelFolder
from codegrid.stage1_vqvae.quantizers.nearest import Nearest

from .card import CARD
from .networks import Decoder, Encoder, count_halvings
from .quantizers import QUANTIZERS


class Reconstruction(NamedTuple):
    """What training needs of a batch of images."""

    images: torch.Tensor  # (b, c, H, W), the reconstruction
    codes: torch.Tensor  # (b, h, w) int64
    loss: torch.Tensor  # scalar: reconstruction_loss + quantizer_loss (Eq. 3)
    reconstruction_loss: torch.Tensor  # scalar: mean squared error / data_variance
    quantizer_loss: torch.Tensor  # scalar: codebook_loss + commitment_cost · commitment_loss


class VQVAE(ModelFolder, nn.Module):
    """The tokenizer.

    Args:
        in_channels: c, 1 or 3.
        image_size: (H, W) of the images it is trained on; `decode` gives back this size.
        hidden_channels: width of the networks.
        residual_channels: width inside a residual block.
        num_residual_blocks: blocks in the encoder, and in the decoder.
        downsampling: any power of two.
        data_variance: variance of the training images, in the range [-1, 1]; scales the reconstruction term.
        quantizer: a name in `QUANTIZERS`.
        quantizer_options: `num_embeddings`, `embedding_dim`, `commitment_cost`, `decay`, ...

    Worked example: images (8, 3, 32, 32) with downsampling=4, num_embeddings=512 → codes (8, 8, 8) in 0 ... 511.
    """

    card = CARD

    def __init__(
        self,
        in_channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
        hidden_channels: int = 128,
        residual_channels: int = 32,
        num_residual_blocks: int = 2,
        downsampling: int = 4,
        data_variance: float = 1.0,
        quantizer: str = "ema",
        **quantizer_options: Any,
    ) -> None:
        super().__init__()
        if type(in_channels) is not int or in_channels not in (1, 3):
            raise ValueError(f"in_channels {short(in_channels)}: it must be 1 or 3")
        if not isinstance(image_size, list | tuple) or len(image_size) != 2:
            raise ValueError(f"image_size {short(image_size)}: it must be (height, width)")
        for side in image_size:
            check_whole("image_size", side, 1, LARGEST_SIDE)
        check_whole("hidden_channels", hidden_channels, 2, WIDEST)
        check_whole("residual_channels", residual_channels, 1, WIDEST)
        check_whole("num_residual_blocks", num_residual_blocks, 0, MOST_LAYERS)
        count_halvings(downsampling)
        check_number("data_variance", data_variance, low=1e-12)
        check_name("quantizer", quantizer, QUANTIZERS)
        self.in_channels = in_channels
        self.image_size = (image_size[0], image_size[1])
        self.downsampling = downsampling
        self.data_variance = data_variance
        self.quantizer = QUANTIZERS[quantizer](**quantizer_options)
        sizes = (hidden_channels, residual_channels, num_residual_blocks, self.quantizer.embedding_dim, downsampling)
        self.encoder = Encoder(in_channels, *sizes)
        self.decoder = Decoder(in_channels, *sizes)
        self.config = {
            "in_channels": in_channels,
            "image_size": list(image_size),
            "hidden_channels": hidden_channels,
            "residual_channels": residual_channels,
            "num_residual_blocks": num_residual_blocks,
            "downsampling": downsampling,
            "data_variance": data_variance,
            "quantizer": quantizer,
            **quantizer_options,
        }
        self.provenance: dict[str, Any] = {}

    @property
    def num_embeddings(self) -> int:
        """K."""
        return self.quantizer.num_embeddings

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(h, w) of the codes of images of `image_size`."""
        height, width = self.image_size
        return -(-height // self.downsampling), -(-width // self.downsampling)

    def forward(self, images: torch.Tensor) -> Reconstruction:
        """(b, c, H, W) in [-1, 1] → reconstruction, codes and the loss of Eq. 3."""
        vectors, codes, quantizer_loss = self.quantizer(self.encoder(self._pad(images)))
        reconstruction = self._crop(self.decoder(vectors), images.shape[-2:])
        # −log p(x | z_q) of a Gaussian with the data's variance, up to a constant
        reconstruction_loss = F.mse_loss(reconstruction, images) / self.data_variance
        return Reconstruction(
            reconstruction, codes, reconstruction_loss + quantizer_loss, reconstruction_loss, quantizer_loss
        )

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(b, c, H, W) in [-1, 1] → codes (b, h, w) int64, 0 ... K-1. Changes nothing, in train mode neither."""
        return self.encode_marking_ties(images, mark_ties=False).codes

    @torch.no_grad()
    def encode_marking_ties(self, images: torch.Tensor, mark_ties: bool = True) -> Nearest:
        """The same, and at which sites (b, h, w) two entries are equally near, but for rounding."""
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(f"images of shape {tuple(images.shape)}, but (b, {self.in_channels}, H, W) is needed")
        return self.quantizer.encode_marking_ties(self.encoder(self._pad(images)), mark_ties)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Codes (b, h, w) → images (b, c, H, W), about [-1, 1].

        `size` is the (H, W) to crop to: by default `image_size` where the grid is the one of such images,
        otherwise the grid times the down-sampling factor.
        """
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.num_embeddings:
            outlier = int(codes.max()) if codes.max() >= self.num_embeddings else int(codes.min())
            raise ValueError(f"code {outlier}, but the codebook has entries 0 to {self.num_embeddings - 1}")
        images = self.decoder(self.quantizer.look_up(codes.long()))
        if size is None:
            size = self.image_size if tuple(codes.shape[-2:]) == self.grid_shape else images.shape[-2:]
        return self._crop(images, size)

    def _pad(self, images: torch.Tensor) -> torch.Tensor:
        """Repeat the last row and column up to the next multiple of the down-sampling factor."""
        height, width = images.shape[-2:]
        bottom, right = -height % self.downsampling, -width % self.downsampling
        return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images

    @staticmethod
    def _crop(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return images[..., : size[0], : size[1]]
