"""A straightforward implementation of both stages: the yardstick of `benchmarks.training`.

The networks are those of the papers, in float32 and in PyTorch's default layout. The quantizer looks up its codes with
one-hot matrices, and the prior masks full kernels, as most public code does.

Shapes: b batch, c channels, h w code grid, D embedding_dim, K num_embeddings, n = b·h·w.
"""

import torch
import torch.nn.functional as F
from torch import nn

from codegrid.stage1_vqvae.networks import PaperNetwork


class PlainQuantizer(nn.Module):
    """EMA codebook with distances, one-hot codes and sums as whole matrices."""

    def __init__(self, num_embeddings: int = 512, embedding_dim: int = 64, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("codebook", torch.randn(num_embeddings, embedding_dim))
        self.register_buffer("hits", torch.ones(num_embeddings))
        self.register_buffer("sums", self.codebook.clone())

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantize latents (b, D, h, w) → vectors, loss, perplexity."""
        sites = latents.permute(0, 2, 3, 1).contiguous()
        rows = sites.view(-1, sites.shape[-1])
        distances = rows.square().sum(1, keepdim=True) + self.codebook.square().sum(1) - 2 * rows @ self.codebook.t()
        one_hot = torch.zeros_like(distances).scatter_(1, distances.argmin(1, keepdim=True), 1)  # (n, K)
        vectors = (one_hot @ self.codebook).view(sites.shape)
        if self.training:
            with torch.no_grad():
                self.hits.mul_(self.decay).add_(one_hot.sum(0), alpha=1 - self.decay)
                self.sums.mul_(self.decay).add_(one_hot.t() @ rows, alpha=1 - self.decay)
                self.codebook.copy_(self.sums / self.hits.clamp_min(1e-5)[:, None])
        loss = 0.25 * F.mse_loss(vectors.detach(), sites)
        vectors = sites + (vectors - sites).detach()
        share = one_hot.mean(0)
        perplexity = torch.exp(-(share * torch.log(share + 1e-10)).sum())
        return vectors.permute(0, 3, 1, 2).contiguous(), loss, perplexity


class PlainVQVAE(nn.Module):
    """Encoder, quantizer, decoder of images with c channels; `quantizer=None` leaves the middle out."""

    def __init__(
        self,
        quantizer: nn.Module | None,
        network: PaperNetwork | None = None,
        channels: int = 3,
        variance: float = 0.25,
    ) -> None:
        super().__init__()
        network = network or PaperNetwork()
        self.encoder, self.decoder = network.encoder(channels, 64, 4), network.decoder(64, channels, 4)
        self.quantizer, self.variance = quantizer, variance

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the loss of images (b, c, H, W)."""
        latents, loss = self.encoder(images), 0.0
        if self.quantizer is not None:
            latents, loss, _ = self.quantizer(latents)
        return F.mse_loss(self.decoder(latents), images) / self.variance + loss


class MaskedConv(nn.Conv2d):
    """A convolution whose kernel is multiplied by a mask at every forward pass."""

    def __init__(self, channels: int, mask: torch.Tensor) -> None:
        height, width = mask.shape
        super().__init__(channels, 2 * channels, (height, width), padding=(height // 2, width // 2))
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (b, c, h, w) → (b, 2c, h, w)."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class PlainLayer(nn.Module):
    """Both stacks of one gated layer."""

    def __init__(self, channels: int, kernel: int, first: bool, num_classes: int) -> None:
        super().__init__()
        self.first = first
        seen = kernel // 2 + (not first)
        above, left = torch.zeros(kernel, kernel), torch.zeros(1, kernel)
        above[:seen], left[:, :seen] = 1, 1
        self.vertical, self.horizontal = MaskedConv(channels, above), MaskedConv(channels, left)
        self.vertical_to_horizontal = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.horizontal_out = nn.Conv2d(channels, channels, 1)
        self.condition = nn.Embedding(num_classes, 2 * channels)

    def forward(
        self, vertical: torch.Tensor, horizontal: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (b, c, h, w) of both stacks → those of the next layer."""
        condition = self.condition(labels)[:, :, None, None]
        above = self.vertical(vertical)
        left = self.horizontal(horizontal) + self.vertical_to_horizontal(above)
        update = self.horizontal_out(self._gate(left + condition))
        return self._gate(above + condition), update if self.first else horizontal + update

    @staticmethod
    def _gate(x: torch.Tensor) -> torch.Tensor:
        signal, opening = x.chunk(2, dim=1)
        return torch.tanh(signal) * torch.sigmoid(opening)


class PlainPrior(nn.Module):
    """Gated PixelCNN with masked full kernels, 7 and then 3."""

    def __init__(
        self, num_embeddings: int = 512, channels: int = 64, num_layers: int = 15, num_classes: int = 10
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embedding = nn.Embedding(num_embeddings, channels)
        self.layers = nn.ModuleList(
            PlainLayer(channels, 3 if number else 7, number == 0, num_classes) for number in range(num_layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, 4 * channels, 1), nn.ReLU(), nn.Conv2d(4 * channels, num_embeddings, 1)
        )

    def forward(self, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Codes (b, h, w), labels (b,) → logits (b, K, h, w)."""
        vertical = horizontal = self.embedding(codes).permute(0, 3, 1, 2)
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal, labels)
        return self.head(horizontal)
