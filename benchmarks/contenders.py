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

from codegrid.data.codes import shard_ranges
from codegrid.data.images import to_float
from codegrid.data.sources import load_images
from codegrid.pipelines.export_codes import export_codes
from codegrid.pipelines.generation.encoding import encode_ranges
from codegrid.pipelines.running.configs import ExportCodes
from codegrid.pipelines.running.device import autocast, start_accelerator
from codegrid.pipelines.training.averaging import averaged
from codegrid.stage1_vqvae import VQVAE
from codegrid.stage1_vqvae.usage import perplexity
from codegrid.stage2_prior import GatedPixelCNN
from codegrid.stage2_prior.likelihood import nats_of

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
            result = tokenizer(pixels)
            perplexity(torch.bincount(result.codes.flatten(), minlength=entries))
            return result.loss
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
    images = draw_images()
    return _plain_step(model, lambda: model(to_float(images)))


def prior_step(precision: str = "bf16") -> Step:
    """Stage 2: forward with dropout, backward, clipping, Adam, and the moving average of the weights."""
    prior = GatedPixelCNN(512, 64, 15, num_classes=10, dropout=0.1, label_dropout=0.1)
    prior.train().to(memory_format=torch.channels_last)
    average = averaged(prior, 0.999)
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-3, fused=True)
    grids, labels = draw_grids()

    def step() -> None:
        with autocast(precision, CPU):
            nats = nats_of(prior(grids, labels), grids).mean()
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


def save_for_export(folder: str) -> None:
    """A tokenizer whose codebook lies among its latents, and an npz file of images of which 16,384 are exported."""
    torch.manual_seed(0)
    tokenizer = VQVAE(data_variance=0.25).eval()
    images = draw_images(EXPORTED + EXPORTED // 9)  # every tenth is held out
    with torch.no_grad():
        latents = rearrange(tokenizer.encoder(to_float(images[:64])), "b d h w -> (b h w) d")
        tokenizer.quantizer.codebook.copy_(latents[torch.randperm(len(latents))[: tokenizer.num_embeddings]])
    tokenizer.save_pretrained(f"{folder}/tokenizer")
    np.savez(f"{folder}/images.npz", images.permute(0, 2, 3, 1).numpy())


def encoder_pass(folder: str) -> Step:
    """The encoder alone over as many images as are exported, in float32."""
    tokenizer = VQVAE.from_pretrained(f"{folder}/tokenizer").to(memory_format=torch.channels_last)
    images = load_images("npz", f"{folder}/images.npz", "train").images

    def step() -> None:
        with torch.inference_mode():
            for piece in images.split(IMAGE_BATCH):
                tokenizer.encoder(to_float(piece).contiguous(memory_format=torch.channels_last))

    return step


def encoding_pass(folder: str) -> Step:
    """What the script does between loading the images and writing the codes."""
    tokenizer = VQVAE.from_pretrained(f"{folder}/tokenizer").to(memory_format=torch.channels_last)
    images = load_images("npz", f"{folder}/images.npz", "train")
    accelerator = start_accelerator("cpu", with_prose=False)

    def step() -> None:
        for _ in encode_ranges(tokenizer, images, shard_ranges(len(images)), IMAGE_BATCH, 0, accelerator):
            pass

    return step


def export_pass(folder: str) -> Step:
    """The whole script `export_codes`, from the images in a file to the finished code dataset."""
    settings = ExportCodes(
        tokenizer=f"{folder}/tokenizer", output=f"{folder}/codes", dataset="npz", data_root=f"{folder}/images.npz"
    )

    def step() -> None:
        shutil.rmtree(settings.output, ignore_errors=True)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            export_codes(settings)

    return step
