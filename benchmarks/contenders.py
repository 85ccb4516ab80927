"""The steps that `benchmarks.training` times: each function makes one, which is called again and again.

Codegrid's own steps use the parts of its training loop.

Shapes: b batch, c channels, H W image, h w code grid, K num_embeddings.
"""

from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from codegrid.codes import Grid, Signal
from codegrid.data.codes import CodeBatch
from codegrid.data.images import ImageBatch, ImageDataset, to_float
from codegrid.pipelines.running.device import ComputeConfig, autocast, channels_last, place, start_accelerator
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
    """The amount of work of the contenders."""

    images: int = 256  # per step of stage 1
    grids: int = 128  # per step of stage 2
    num_layers: int = 15  # of the prior


FULL, TOY = Sizes(), Sizes(4, 4, 2)


def draw_images(batch: int, size: int = 32) -> torch.Tensor:
    """Return smooth random pictures (b, 3, size, size) uint8: noise would be an unusual workload for the codebook."""
    coarse = torch.rand(batch, 3, max(2, size // 8), max(2, size // 8))
    return (255 * F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)).to(torch.uint8)


def build_tokenizer(size: int = 32, entries: int = 512) -> Any:
    """Return the default tokenizer."""
    signal = Signal(channels=3, size=(size, size))
    return TABLES["tokenizer"]["vqvae"](signal=signal, data_variance=0.25, num_embeddings=entries)


def loop_step(objective: Objective, settings: Any, batch: Any) -> Step:
    """Return a step of the training loop, always with the same batch."""
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
    """Return a step of stage 1: uint8 images → float, forward, backward, Adam, codebook.

    `compute` is `device` and `compile`.
    """
    images = ImageDataset(draw_images(batch, size))
    settings = TrainTokenizer(
        output="", batch_size=batch, steps=10**6, precision=precision, **{"device": "cpu", **compute}
    )
    tokenizer = place(build_tokenizer(size, entries), torch.device(settings.device))
    objective = TokenizerObjective(tokenizer, images, images, settings)
    return loop_step(objective, settings, ImageBatch(images.images, None))


def bare_tokenizer_step(precision: str, batch: int) -> Step:
    """Return a step of stage 1's networks without the quantizer."""
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
    """Return a step of stage 1 as it is usually written."""
    model = PlainVQVAE(PlainQuantizer() if with_quantizer else None).train()
    images = draw_images(batch)
    return _plain_step(model, lambda: model(to_float(images)))


def prior_step(
    precision: str = "bf16", batch: int = FULL.grids, num_layers: int = FULL.num_layers, side: int = 8, **compute: Any
) -> Step:
    """Return a step of stage 2: forward with dropout, backward, clipping, Adam, moving average of the weights."""
    settings = TrainPrior(
        output="", codes="codes", batch_size=batch, steps=10**6, precision=precision, **{"device": "cpu", **compute}
    )
    prior = TABLES["prior"]["pixelcnn"](layout=(Grid((side, side), 512),), num_classes=10, num_layers=num_layers)
    objective = PriorObjective(place(prior, torch.device(settings.device)), [], [], settings)
    grids, labels = draw_grids(batch, side)
    return loop_step(objective, settings, CodeBatch((grids,), {"labels": labels}))


def plain_prior_step(batch: int, num_layers: int) -> Step:
    """Return a step of the prior with masked full kernels."""
    prior = PlainPrior(num_layers=num_layers).train()
    grids, labels = draw_grids(batch)
    return _plain_step(prior, lambda: F.cross_entropy(prior(grids, labels), grids))


def draw_grids(batch: int, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random codes (b, side, side) below 512, and labels (b,) below 10."""
    return torch.randint(0, 512, (batch, side, side)), torch.randint(0, 10, (batch,))


def _plain_step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step
