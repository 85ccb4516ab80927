"""The steps that `benchmarks.training` times: each function makes one, to be called again and again.

Codegrid's own are put together as its scripts do it.

Shapes: b batch, c channels, H W image, h w code grid, K num_embeddings.
"""

import io
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from data.images import to_float
from pipelines.averaging import averaged
from pipelines.configs import ExportCodes
from pipelines.export_codes import export_codes
from pipelines.runtime import autocast
from stage1_vqvae import VQVAE
from stage2_prior import GatedPixelCNN

from .plain import PlainPrior, PlainQuantizer, PlainVQVAE

Step = Callable[[], object]
CPU = torch.device("cpu")
IMAGE_BATCH, GRID_BATCH = 256, 128
EXPORTED = 16_384  # images


def draw_images(batch: int = IMAGE_BATCH, size: int = 32) -> torch.Tensor:
    """Smooth random pictures (b, 3, size, size) uint8: noise would be an unusual work load for the codebook."""
    coarse = torch.rand(batch, 3, max(2, size // 8), max(2, size // 8))
    return (255 * F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)).to(torch.uint8)


def tokenizer_step(
    precision: str = "bf16", with_quantizer: bool = True, batch: int = IMAGE_BATCH, size: int = 32, entries: int = 512
) -> Step:
    """Stage 1: uint8 images → float, forward, backward, Adam."""
    tokenizer = VQVAE(image_size=(size, size), num_embeddings=entries, data_variance=0.25)
    tokenizer.train().to(memory_format=torch.channels_last)
    images = draw_images(batch, size)
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-4, fused=True)

    def loss(pixels: torch.Tensor) -> torch.Tensor:
        if with_quantizer:
            return tokenizer(pixels).loss
        return F.mse_loss(tokenizer.decoder(tokenizer.encoder(pixels)), pixels) / tokenizer.data_variance

    def step() -> None:
        pixels = to_float(images).contiguous(memory_format=torch.channels_last)
        with autocast(precision, CPU):
            value = loss(pixels)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_tokenizer_step(with_quantizer: bool = True) -> Step:
    """The same model as it is usually written."""
    model = PlainVQVAE(PlainQuantizer() if with_quantizer else None).train()
    images = to_float(draw_images())
    return _plain_step(model, lambda: model(images))


def prior_step(precision: str = "bf16") -> Step:
    """Stage 2: forward with dropout, backward, clipping, Adam, and the moving average of the weights."""
    prior = GatedPixelCNN(512, 64, 15, num_classes=10, dropout=0.1, label_dropout=0.1)
    prior.train().to(memory_format=torch.channels_last)
    average = averaged(prior, 0.999)
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-3, fused=True)
    grids, labels = draw_grids()

    def step() -> None:
        with autocast(precision, CPU):
            logits = prior(grids, labels)
            nats = F.cross_entropy(rearrange(logits, "b k h w -> (b h w) k").float(), grids.flatten())
        nats.backward()
        nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(prior)

    return step


def plain_prior_step() -> Step:
    """The same prior with masked full kernels."""
    prior = PlainPrior().train()
    grids, labels = draw_grids()
    return _plain_step(prior, lambda: F.cross_entropy(prior(grids, labels), grids))


def draw_grids() -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (b, 8, 8) of 512, labels (b,) of 10."""
    return torch.randint(0, 512, (GRID_BATCH, 8, 8)), torch.randint(0, 10, (GRID_BATCH,))


def _plain_step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def encoder_pass(folder: str) -> Step:
    """The encoder alone over the images of `export_pass`, in float32."""
    tokenizer, images = _save_for_export(folder)

    def step() -> None:
        with torch.inference_mode():
            for piece in images.split(IMAGE_BATCH):
                tokenizer.encoder(to_float(piece).contiguous(memory_format=torch.channels_last))

    return step


def export_pass(folder: str) -> Step:
    """The whole script `export_codes`, from the images in a file to the finished code dataset."""
    _save_for_export(folder)
    settings = ExportCodes(
        tokenizer=f"{folder}/tokenizer", output=f"{folder}/codes", dataset="npz", data_root=f"{folder}/images.npz"
    )

    def step() -> None:
        shutil.rmtree(settings.output, ignore_errors=True)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            export_codes(settings)

    return step


def _save_for_export(folder: str) -> tuple[VQVAE, torch.Tensor]:
    """A tokenizer whose codebook lies among its latents, and images; what an export holds out stands behind them."""
    tokenizer = VQVAE(data_variance=0.25).eval().to(memory_format=torch.channels_last)
    images = torch.cat([draw_images(1024) for _ in range(EXPORTED // 1024)])
    with torch.no_grad():
        latents = rearrange(tokenizer.encoder(to_float(images[:64])), "b d h w -> (b h w) d")
        tokenizer.quantizer.codebook.copy_(latents[torch.randperm(len(latents))[: tokenizer.num_embeddings]])
    tokenizer.save_pretrained(f"{folder}/tokenizer")
    everything = images.repeat(10, 1, 1, 1)[: len(images) * 10 // 9 + 1]
    np.savez(f"{folder}/images.npz", everything.permute(0, 2, 3, 1).numpy())
    return tokenizer, images
