"""Metrics of a tokenizer and of a prior over a whole data set, whatever the batch size.

Shapes: b batch, c channels, *size an image's sides, *shape the sites of each grid.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch

from codegrid.codes import Codes, Condition
from codegrid.data.captions import choose_captions
from codegrid.data.codes import CodeBatch
from codegrid.data.images import ImageBatch, to_float
from codegrid.data.videos import WindowBatch
from codegrid.devices import widest
from codegrid.noise import Noise
from codegrid.pipelines.generation.pairing import spoken_by
from codegrid.protocols import NO_CONDITION, Prior, Tokenizer
from codegrid.stage1_vqvae.usage import LayoutUsage
from codegrid.stage2_prior.likelihood import measure, measure_error

WINDOW = 11  # pixels of a side of SSIM's Gaussian window of σ 1.5
DATA_RANGE = 2.0  # the width of [-1, 1]


class Reconstruction(NamedTuple):
    """A batch of images, and the tokenizer's reconstruction of it."""

    images: torch.Tensor  # (b, c, *size) uint8
    labels: torch.Tensor | None  # (b,) int64
    codes: Codes  # (b, *shape) int64 for each grid
    output: torch.Tensor  # (b, c, *size), the decoder's: about [-1, 1], not clipped
    given: Condition = NO_CONDITION  # who speaks, as the decoder was told


@torch.no_grad()
def measure_tokenizer(
    tokenizer: Tokenizer,
    batches: Iterable[ImageBatch],
    usage: LayoutUsage | None = None,
    watchers: Sequence[Callable[[Reconstruction], None]] = (),
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the error and the PSNR of reconstructions, and how much of the codebooks is used.

    `reconstruction_error` is the MSE over the variance of the training data; `psnr` is the mean over the images, in dB.
    For several grids, `perplexity` is the mean over the grids, `codebook_usage` the share of all their entries, and
    `unused_entries` the sum; `grids` has these for each grid.

    The tokenizer must be in eval mode; `usage` counts the codes, and each of `watchers` is called with each batch.
    `classes` names the labels, for a decoder that is told who speaks. Padding does not count.
    """
    usage = usage or LayoutUsage(tokenizer.layout)
    errors, first, weights = [], 0, []
    for batch in batches:
        images = batch.images.to(tokenizer.device)
        x = to_float(images)
        codes = tokenizer.encode(x)
        usage.add(hide_padding(tokenizer, codes, batch.lengths))
        # a stochastic decoder's noise belongs to the image, not to its place in a batch
        noise = Noise(0, first, len(images), tokenizer.device)
        given = spoken_by(tokenizer, Condition(batch.labels, lengths=batch.lengths), classes)
        output = tokenizer.decode(codes, tuple(x.shape[2:]), given, noise)
        for watcher in watchers:
            watcher(Reconstruction(images, batch.labels, codes, output, given))
        errors.append(squared_errors(x, output, batch.lengths))
        weights.append(torch.ones(len(x)) if batch.lengths is None else batch.lengths)
        first += len(images)
    mse, of_each = torch.cat(errors), torch.cat(weights).double()
    return {
        "reconstruction_error": float((mse * of_each).sum() / of_each.sum()) / tokenizer.data_variance,
        "psnr": mean_psnr(mse),
        **usage.figures()._asdict(),
        "grids": [one._asdict() for one in usage.by_grid()],
    }


def prior_inputs(prior: Prior, batch: CodeBatch | WindowBatch, noise: Noise | None = None) -> tuple[Codes, Condition]:
    """Return a prior's own codes, picked from those of all grids, and its condition, on its device.

    The condition is made of labels or captions, coarser grids, and what the batch itself gives, such as earlier frames.
    Of several captions, a prior over texts is given the first one, or, given noise, any at random.
    """
    conditions = prior.conditions
    captions = choose_captions(batch, noise) if conditions.num_words else None
    coarser = tuple(batch.codes[grid] for grid in prior.given_grids)
    given = conditions.given(batch.labels, captions)
    before: Condition = getattr(batch, "given", NO_CONDITION)
    given = given._replace(codes=(*coarser, *before.codes), actions=before.actions)
    return tuple(batch.codes[grid].to(prior.device) for grid in prior.grids), given.to(prior.device)


def measure_prior(prior: Prior, batches: Iterable[CodeBatch]) -> dict[str, Any]:
    """Return the cross-entropy of codes in bits, or a bound on it; without a likelihood, the prior's own measure.

    `bits_per_code` is the mean over the codes of all grids of the prior, `bits_per_image` the sum over an image's;
    `grids` has the bits per code of each grid. The prior must be in eval mode.
    """
    inputs = (prior_inputs(prior, batch) for batch in batches)
    if prior.likelihood == "none":
        return measure_error(prior, inputs)
    bits = measure(prior, inputs)
    if bits is None:
        return {}
    grids = [{"grid": grid, "bits_per_code": own} for grid, own in zip(prior.grids, bits.of_grids, strict=True)]
    return {"bits_per_code": bits.per_code, "bits_per_image": bits.per_sample, "grids": grids}


def hide_padding(tokenizer: Tokenizer, codes: Codes, lengths: torch.Tensor | None) -> Codes:
    """Return codes (b, *shape), HIDDEN where they stand for padding, if items are of several lengths (b,)."""
    return codes if lengths is None else cast(Any, tokenizer).hide_padding(codes, lengths)


def squared_errors(images: torch.Tensor, output: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean squared errors (b,) float64 of outputs, which are clipped, (b, c, *size) each in [-1, 1].

    Given `lengths` (b,), only so many values of each item's last axis count.
    """
    squares = (output.clamp(-1, 1) - images).square().to(widest(images.device))
    if lengths is None:
        return squares.flatten(1).mean(1).cpu().double()
    return (
        torch.stack([each[..., :length].mean() for each, length in zip(squares, lengths, strict=True)]).cpu().double()
    )


def mean_psnr(errors: torch.Tensor) -> float:
    """Return the mean PSNR in dB of images with these mean squared errors (n,)."""
    return float((10 * torch.log10(DATA_RANGE**2 / errors.clamp_min(1e-10))).mean())


def structural_similarity(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor | None:
    """Return the SSIM (Wang et al. 2004) of each pair of images; None if they are smaller than the window or not 2-D.

    (b, c, H, W) in [-1, 1] → (b,) float64 in [-1, 1]: 11×11 Gaussian window of σ 1.5, K_1 0.01, K_2 0.03, the mean over
    sites and channels. Values are first brought to [0, 1]: the formula divides by the means, and around a mean of 0
    even a tiny difference would count in full.
    """
    if images.ndim != 4 or min(images.shape[2:]) < WINDOW:
        return None
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes seconds; training needs none

    # per image: a mean over batches would give the images of a short last batch more weight
    ours, theirs = (others + 1) / 2, (images + 1) / 2
    found = structural_similarity_index_measure(ours, theirs, data_range=1.0, reduction="none")
    assert isinstance(found, torch.Tensor)  # it is a pair only if its parts are asked for
    return found.double()
