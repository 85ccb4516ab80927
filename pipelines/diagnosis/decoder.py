"""The quality of reconstructions: are they near their originals, and as sharp?

Shapes: b batch, c channels, H W image.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from codegrid.data.images import ImageBatch, to_float
from codegrid.pipelines.evaluation.reconstruction import Reconstruction, measure_tokenizer
from codegrid.protocols import Tokenizer
from codegrid.stage1_vqvae.usage import LayoutUsage

from .finding import FAULT, WARNING, Finding, Metrics, Row, join_words, name_flags, pick

# README: 0.032 on digits and 0.044 to 0.054 on photographs with defaults, 0.084 with a collapsed codebook.
MAX_ERROR = 0.25
# Decoders trained on squared error return the mean of what the codes allow: smoother than the originals (0.81 of their
# squared gradients on digits, 0.60 on CIFAR-10), but such that no filter improves them: it removed 1 to 2 % of their
# error, and 10 % on bars after seconds of training. Behind a blur (3×3 and 5×5 means, binomial filters) gradients
# were 0.10 to 0.35, and a filter removed 25 to 71 % of the error. What no filter removes, the codes do not hold.
MIN_SHARPNESS = 0.5
MAX_REMOVED = 0.2
REACH = 2  # pixels to each side that the filter sees
TAPS = (2 * REACH + 1) ** 2
MAX_WINDOW = 256  # pixels of a side that it is fitted to
MAX_PIXELS = 200_000  # of a batch that it is fitted to

ROWS = {
    "reconstruction_error": Row("error of reconstructions, MSE / variance", ".3f", high=0.1),
    "psnr": Row("PSNR of reconstructions, dB", ".1f", low=20),
    "sharpness": Row("their squared gradients over the originals'", low=MIN_SHARPNESS, high=1.2),
    "removed_by_filter": Row("share of their error that a filter removes", high=0.1),
}


class Sharpness:
    """Sums over batches: squared gradients, and the normal equations of the linear filter that removes most error."""

    def __init__(self) -> None:
        self.gradients = torch.zeros(2, dtype=torch.float64)  # of originals, of reconstructions
        self.products = torch.zeros(TAPS + 2, TAPS + 2, dtype=torch.float64)

    def add(self, batch: Reconstruction) -> None:
        """Add originals and reconstructions (b, c, H, W)."""
        originals, outputs = to_float(batch.images), batch.output.clamp(-1, 1)
        self.gradients += torch.tensor([_squared_gradients(originals), _squared_gradients(outputs)])
        rows = _neighbourhoods(originals, outputs).double()
        self.products += (rows.T @ rows).cpu()

    def metrics(self) -> Metrics:
        """Return the sharpness, and the share of the error that a filter removes, over all batches."""
        columns, target = self.products[:-1, :-1], self.products[:-1, -1:]
        ridge = 1e-6 * columns.diagonal().mean() * torch.eye(TAPS + 1, dtype=torch.float64)  # of flat images, too
        explained = float((target.T @ torch.linalg.solve(columns + ridge, target)).squeeze())
        error = float(self.products[-1, -1])
        return {
            "sharpness": float(self.gradients[1] / self.gradients[0].clamp_min(1e-12)),
            "removed_by_filter": max(0.0, explained / max(error, 1e-12)),
        }


def _squared_gradients(images: torch.Tensor) -> float:
    """Return the sum of squared differences of neighbours, in both directions."""
    return sum(float(images.diff(dim=axis).square().double().sum()) for axis in (-2, -1))


def _neighbourhoods(originals: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Return a row for each pixel: the reconstruction around it, 1, and the error there, (m, TAPS + 2)."""
    outputs, originals = (images[..., :MAX_WINDOW, :MAX_WINDOW].flatten(0, 1) for images in (outputs, originals))
    some = slice(0, max(1, MAX_PIXELS // outputs[0].numel()))  # images of a batch: the filter has few coefficients
    outputs, originals = outputs[some, None], originals[some, None]
    padded = F.pad(outputs, (REACH,) * 4, mode="replicate")
    around = F.unfold(padded, 2 * REACH + 1).transpose(1, 2).flatten(0, 1)
    error = (originals - outputs).flatten()[:, None]
    return torch.cat([around, torch.ones_like(error), error], 1)


def measure_decoder(tokenizer: Tokenizer, batches: Iterable[ImageBatch], usage: LayoutUsage) -> Metrics:
    """Return error and sharpness of the reconstructions of images; the codes are counted in `usage`."""
    sharpness = Sharpness()
    metrics = measure_tokenizer(tokenizer, batches, usage, [sharpness.add])
    return {**pick(metrics, "reconstruction_error", "psnr"), **sharpness.metrics()}


def find_blur(metrics: Metrics, config: Mapping[str, Any]) -> list[Finding]:
    """Find large errors, a decoder that shows less than its codes hold, and codes without details.

    Args:
        metrics: of `measure_decoder`.
        config: the tokenizer's config, for the flags that it has.
    """
    if "sharpness" not in metrics:
        return []
    sharp, removed, findings = metrics["sharpness"], metrics["removed_by_filter"], []
    more = name_flags(config, "num_embeddings", "fsq_levels", "num_quantizers")
    if metrics["reconstruction_error"] > MAX_ERROR:
        words = (
            f"The tokenizer reconstructs badly: error {metrics['reconstruction_error']:.2f} of the images' variance, "
            f"{metrics['psnr']:.1f} dB."
        )
        larger = join_words(["--steps", *name_flags(config, "hidden_channels"), *more])
        remedy = (
            f"Train it with more (codegrid train-tokenizer {larger}), and check that the images (--dataset, "
            "--data-root) are of the kind it was trained on."
        )
        findings.append(Finding(FAULT, "tokenizer", words, remedy, pick(metrics, "reconstruction_error", "psnr")))
    if removed > MAX_REMOVED:
        words = (
            f"The decoder blurs: a plain linear filter removes {removed:.0%} of its error, but hardly any of a fully "
            f"trained decoder's; its squared gradients are {sharp:.2f} of the originals'."
        )
        wider = join_words(["--steps", *name_flags(config, "hidden_channels")], "and")
        remedy = (
            f"Train the tokenizer with more (codegrid train-tokenizer {wider}), and check that nothing smooths its "
            "output. The codes are not at fault."
        )
        findings.append(Finding(FAULT, "tokenizer", words, remedy, pick(metrics, "sharpness", "removed_by_filter")))
    elif sharp < MIN_SHARPNESS:
        words = (
            "The codes hold few details: squared gradients of reconstructions are "
            f"{sharp:.2f} of the originals', and no filter brings them back."
        )
        finer = name_flags(config, "downsampling", before="a smaller ") + name_flags(
            config, "levels", before="smaller "
        )
        finer += [f"a larger {flag}" for flag in more]
        remedy = f"Train the tokenizer longer, or with {join_words(finer) or 'more codes'} (codegrid train-tokenizer)."
        findings.append(Finding(WARNING, "tokenizer", words, remedy, pick(metrics, "sharpness")))
    return findings
