"""Figures of a tokenizer and of a prior over a whole data set, whatever the batch size.

Shapes: b batch, c channels, H W image, h w code grid, K num_embeddings.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from codegrid.data.images import to_float
from codegrid.stage1_vqvae.usage import UsageCounter
from codegrid.stage2_prior.likelihood import nats_of

if TYPE_CHECKING:
    from codegrid.stage1_vqvae import VQVAE
    from codegrid.stage2_prior import GatedPixelCNN


class Reconstructed(NamedTuple):
    """A batch of images, and what the tokenizer made of it."""

    images: torch.Tensor  # (b, c, H, W) uint8
    labels: torch.Tensor | None  # (b,) int64
    codes: torch.Tensor  # (b, h, w) int64
    outputs: torch.Tensor  # (b, c, H, W), of the decoder: about [-1, 1], not clipped


@torch.no_grad()
def measure_tokenizer(
    tokenizer: "VQVAE",
    batches: Iterable[Any],
    usage: UsageCounter | None = None,
    watchers: Sequence[Callable[[Reconstructed], None]] = (),
) -> dict[str, float]:
    """Reconstruction error (MSE / variance of the training data), PSNR, and the codebook's `Usage`.

    PSNR is the mean over the images, in dB, for values in [0, 1]. The codes are counted in `usage`, where that is
    given, and each of the watchers is called with each batch.
    """
    device = next(tokenizer.parameters()).device
    usage = usage or UsageCounter(tokenizer.num_embeddings)
    errors = []
    for batch in batches:
        pixels = batch.images.to(device)
        images = to_float(pixels)
        codes = tokenizer.encode(images)
        usage.add(codes)
        outputs = tokenizer.decode(codes, tokenizer.image_size)
        for watcher in watchers:
            watcher(Reconstructed(pixels, batch.labels, codes, outputs))
        squares = (outputs.clamp(-1, 1) - images).square()
        errors.append(squares.double().mean(dim=(1, 2, 3)).cpu())
    mse = torch.cat(errors)
    return {
        "reconstruction_error": float(mse.mean()) / tokenizer.data_variance,
        "psnr": float((10 * torch.log10(4 / mse.clamp_min(1e-10))).mean()),  # 4: the range [-1, 1] is 2 wide
        **usage.figures()._asdict(),
    }


@torch.no_grad()
def measure_prior(prior: "GatedPixelCNN", batches: Iterable[Any]) -> dict[str, float]:
    """Cross-entropy of codes in bits: −log2 p(z) over the number of sites of all grids."""
    device = next(prior.parameters()).device
    nats, sites = 0.0, 0
    for batch in batches:
        codes = batch.codes.to(device)
        labels = batch.labels.to(device) if prior.num_classes else None
        nats += float(
            nats_of(prior(codes, labels), codes).double().sum()
        )  # a sum, not a mean of means: the last batch may be short
        sites += codes.numel()
    return {"bits_per_code": nats / math.log(2) / sites}
