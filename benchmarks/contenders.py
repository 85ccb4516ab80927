"""The steps that `benchmarks.training` times: each function makes one, to be called again and again.

Codegrid's own are made by the parts of its training loop.

Shapes: b batch, c channels, H W image, h w code grid, K num_embeddings.
"""

import io
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from codegrid import load
from codegrid.codes import Grid, Signal
from codegrid.data.code_writer import shard_ranges
from codegrid.data.codes import CodeBatch
from codegrid.data.images import ImageBatch, ImageDataset, to_float
from codegrid.data.sources import load_images
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.encoding import encode_ranges, export_codes
from codegrid.pipelines.running.device import ComputeConfig, autocast, channels_last, place, start_accelerator
from codegrid.pipelines.running.settings import Compute
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.objective import Objective
from codegrid.pipelines.training.prior import PriorObjective
from codegrid.pipelines.training.tokenizer import TokenizerObjective
from codegrid.pipelines.training.trainer import Trainer, fused_adam
from codegrid.registry import TABLES

from .plain import PlainPrior, PlainQuantizer, PlainVQVAE

Step = Callable[[], object]
CPU = torch.device("cpu")


class Sizes(NamedTuple):
    """How much the contenders do."""

    images: int = 256  # a step of stage 1
    grids: int = 128  # a step of stage 2
    exported: int = 16_384  # images
    num_layers: int = 15  # of the prior


FULL, TOY = Sizes(), Sizes(4, 4, 32, 2)


def draw_images(batch: int, size: int = 32) -> torch.Tensor:
    """Smooth random pictures (b, 3, size, size) uint8: noise would be an unusual work load for the codebook."""
    coarse = torch.rand(batch, 3, max(2, size // 8), max(2, size // 8))
    return (255 * F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)).to(torch.uint8)


def build_tokenizer(size: int = 32, entries: int = 512) -> Any:
    """The default tokenizer."""
    signal = Signal(channels=3, size=(size, size))
    return TABLES["tokenizer"]["vqvae"](signal=signal, data_variance=0.25, num_embeddings=entries)


def loop_step(objective: Objective, settings: Any, batch: Any) -> Step:
    """A step of the training loop, always with the same batch."""
    compute = ComputeConfig(settings.precision, settings.compile)
    trainer = Trainer(objective, settings, compute, start_accelerator(settings, False))
    numbers = count()

    def step() -> None:
        number = next(numbers)
        trainer.find_gradients(batch, number)
        trainer.limit_gradients(number)
        trainer.update(number)

    return step


def tokenizer_step(
    precision: str = "bf16", batch: int = FULL.images, size: int = 32, entries: int = 512, **compute: Any
) -> Step:
    """Stage 1: uint8 images → float, forward, backward, Adam, the codebook; `compute` is `device` and `compile`."""
    images = ImageDataset(draw_images(batch, size))
    settings = TrainTokenizer(
        output="", batch_size=batch, steps=10**6, precision=precision, **{"device": "cpu", **compute}
    )
    tokenizer = place(build_tokenizer(size, entries), torch.device(settings.device))
    objective = TokenizerObjective(tokenizer, images, images, settings)
    return loop_step(objective, settings, ImageBatch(images.images, None))


def bare_tokenizer_step(precision: str, batch: int) -> Step:
    """The networks of stage 1 without the quantizer."""
    tokenizer = place(build_tokenizer(), CPU).train()
    images = draw_images(batch)
    optimizer = fused_adam([*tokenizer.encoder.parameters(), *tokenizer.decoder.parameters()])

    def step() -> None:
        pixels = channels_last(to_float(images))
        with autocast(precision, CPU):
            loss = F.mse_loss(tokenizer.decoder(tokenizer.encoder(pixels)), pixels) / tokenizer.data_variance
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_tokenizer_step(batch: int, with_quantizer: bool = True) -> Step:
    """The model of stage 1 as it is usually written."""
    model = PlainVQVAE(PlainQuantizer() if with_quantizer else None).train()
    images = draw_images(batch)
    return _plain_step(model, lambda: model(to_float(images)))


def prior_step(
    precision: str = "bf16", batch: int = FULL.grids, num_layers: int = FULL.num_layers, side: int = 8, **compute: Any
) -> Step:
    """Stage 2: forward with dropout, backward, clipping, Adam, and the moving average of the weights."""
    settings = TrainPrior(
        output="", codes="codes", batch_size=batch, steps=10**6, precision=precision, **{"device": "cpu", **compute}
    )
    prior = TABLES["prior"]["pixelcnn"](layout=(Grid((side, side), 512),), num_classes=10, num_layers=num_layers)
    objective = PriorObjective(place(prior, torch.device(settings.device)), [], [], settings)
    grids, labels = draw_grids(batch, side)
    return loop_step(objective, settings, CodeBatch((grids,), {"labels": labels}))


def plain_prior_step(batch: int, num_layers: int) -> Step:
    """The prior with masked full kernels."""
    prior = PlainPrior(num_layers=num_layers).train()
    grids, labels = draw_grids(batch)
    return _plain_step(prior, lambda: F.cross_entropy(prior(grids, labels), grids))


def draw_grids(batch: int, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (b, side, side) of 512, labels (b,) of 10."""
    return torch.randint(0, 512, (batch, side, side)), torch.randint(0, 10, (batch,))


def _plain_step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def save_for_export(folder: str, exported: int) -> None:
    """A tokenizer whose codebook lies among its latents, and an npz file of images of which so many are exported."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer().eval()
    images = draw_images(exported + exported // 9)  # every tenth is held out
    with torch.no_grad():
        latents = tokenizer.encode_latents(to_float(images[:64])).movedim(1, -1).flatten(0, -2)
        chosen = torch.randint(len(latents), (len(tokenizer.quantizer.codebook),))
        tokenizer.quantizer.codebook.copy_(latents[chosen])
    tokenizer.save_pretrained(f"{folder}/tokenizer")
    np.savez(f"{folder}/images.npz", images.permute(0, 2, 3, 1).numpy())


def encoder_pass(folder: str, batch: int) -> Step:
    """The encoder alone over as many images as are exported, in float32."""
    tokenizer = place(load(f"{folder}/tokenizer"), CPU)
    images = load_images("npz", f"{folder}/images.npz", "train").images

    def step() -> None:
        with torch.inference_mode():
            for piece in images.split(batch):
                tokenizer.encoder(channels_last(to_float(piece)))

    return step


def encoding_pass(folder: str, batch: int) -> Step:
    """The part of the command between loading the images and writing the codes."""
    tokenizer = place(load(f"{folder}/tokenizer"), CPU)
    images = load_images("npz", f"{folder}/images.npz", "train")
    accelerator = start_accelerator(Compute(device="cpu"), with_prose=False)

    def step() -> None:
        for _ in encode_ranges(tokenizer, images, shard_ranges(len(images)), batch, 0, accelerator):
            pass

    return step


def export_pass(folder: str, batch: int) -> Step:
    """The whole command, from the images in a file to the finished code dataset."""
    settings = ExportCodes(
        tokenizer=f"{folder}/tokenizer", output=f"{folder}/codes", dataset="npz", data_root=f"{folder}/images.npz",
        batch_size=batch,
    )  # fmt: skip

    def step() -> None:
        shutil.rmtree(settings.output, ignore_errors=True)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            export_codes(settings)

    return step
