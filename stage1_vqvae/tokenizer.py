"""The VQ-VAE (van den Oord, Vinyals, Kavukcuoglu 2017): image → codes → image.

Shapes: b batch, c channels, H W image, h w code grid (h = ⌈H / downsampling⌉), D embedding_dim, K num_embeddings; codes
(b, h, w), one for each grid of the quantizer.
"""

from typing import Any, ClassVar

import torch
from torch import nn

from codegrid.codes import Latents, Moment, Signal
from codegrid.registry import TABLES

from .image_tokenizer import RGB, ImageTokenizer, Pass, pad
from .options import VQVAEOptions


class VQVAE(ImageTokenizer):
    """A VQ-VAE, which turns images into codes and back.

    Args:
        signal: channels, 1 or 3, and size (H, W) of the images that it is trained on; `decode` returns this size. A
            dict of its fields is accepted, too.
        data_variance: variance of the training images, in the range [-1, 1]; scales the reconstruction term.
        quantizer: a name in `QUANTIZERS`.
        options: `network`, a name in the table of networks; `hidden_channels` and the options of that network;
            `downsampling`; `reconstruction`, a name in `RECONSTRUCTIONS`; and those of the quantizer,
            `num_embeddings`, ...

    Raises `InputError` if an option is unknown or a value is out of range.

    Examples:
        >>> model = VQVAE(Signal(channels=3, size=(32, 32)), num_embeddings=512, downsampling=4, hidden_channels=16)
        >>> (codes,) = model.encode(torch.zeros(2, 3, 32, 32))
        >>> codes.shape
        torch.Size([2, 8, 8])
        >>> model.decode((codes,)).shape
        torch.Size([2, 3, 32, 32])
    """

    options: ClassVar[type] = VQVAEOptions

    def __init__(
        self, signal: Signal | dict[str, Any] = RGB, data_variance: float = 1.0, quantizer: str = "ema", **options: Any
    ) -> None:
        super().__init__(signal, data_variance, quantizer, options)
        self.downsampling: int = self.settings.downsampling
        self.factors = (self.downsampling,)
        self.quantizer = TABLES["quantizer"][quantizer](**self.of_quantizer)
        dim, factor = self.quantizer.embedding_dim, self.downsampling
        self.encoder = self.network.encoder(self.signal.channels, dim, factor)
        self.decoder = self.network.decoder(dim, self.reconstruction.outputs, factor)
        self._settle()

    @property
    def levels(self) -> list[Any]:
        """The quantizer of its one level."""
        return [self.quantizer]

    @property
    def last_layer(self) -> nn.Module:
        """The layer that makes the outputs of the decoder."""
        return list(self.decoder.modules())[-1]

    def run(self, x: torch.Tensor, moment: Moment | None) -> Pass:
        """Return outputs, codes and losses for x (b, c, H, W)."""
        vectors, codes, losses = self.quantizer(self.encoder(pad(x, self.downsampling)), moment)
        return Pass(self.decoder(vectors), codes, losses)

    def encode_latents(self, x: torch.Tensor) -> Latents:
        """Return the latents (b, D, h, w) of x (b, c, H, W) in [-1, 1] before they are quantized, with gradient.

        Raises `InputError` if x is not a batch of images with the right channels.
        """
        self._check_shape(x)
        return (self.encoder(pad(x, self.downsampling)),)

    def to_outputs(self, vectors: Latents) -> torch.Tensor:
        """Return the decoder's outputs (b, n, H, W), of whole sites, for vectors (b, D, h, w)."""
        return self.decoder(*vectors)
