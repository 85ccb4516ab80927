"""Metrics of a tokenizer over codes: how well it predicts codes, and what comes through its own few.

Shapes: b batch, h w code grid below, n items.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch

from codegrid.codes import Codes, Condition
from codegrid.stage1_vqvae.gradients import gradients_at
from codegrid.stage1_vqvae.usage import LayoutUsage
from codegrid.stage2_prior.likelihood import measure_accuracy

OF_LOWER_CODES = {
    "lower_bits_per_image": "bits_per_image", "swapped_lower_bits_per_image": "swapped_bits_per_image",
    "lower_accuracy": "accuracy", "upper_joint_bits": "joint_bits",
    "upper_distinct": "distinct",
}  # fmt: skip


@torch.no_grad()
def measure_codes_of_codes(tokenizer: Any, batches: Iterable[Codes]) -> dict[str, Any]:
    """Return what the codes of a tokenizer over codes tell of those that it encodes.

    `bits_per_image` are the bits of the codes below given those of the tokenizer, at most `capacity_of` fewer than
    without them; `swapped_bits_per_image` are given those of the image before. `accuracy` is the share of codes that
    are the likeliest given those before them. `joint_bits` is the entropy of all codes of an image together, and
    `distinct` the number of different ones; both are limited by the number of images. The rest is the usage of each
    codebook, as of any tokenizer. The tokenizer must be in eval mode.
    """
    usage, own, hits = LayoutUsage(tokenizer.layout), [], []
    below, upper = list[Codes](), list[Codes]()
    for batch in batches:
        x = tuple(grid.to(tokenizer.device) for grid in batch)
        codes = tokenizer.encode(x)
        usage.add(codes)
        below.append(x)
        upper.append(codes)
        own.append(tokenizer.nll(x, codes).cpu().double())
        given = Condition(features=(tokenizer.quantizer.look_up(codes),))
        accuracy = measure_accuracy(tokenizer.decoder, [(x, given)])
        hits += [] if accuracy is None else [accuracy * len(codes[-1])]
    every = tuple(map(torch.cat, zip(*upper, strict=True)))
    sizes = [len(codes[0]) for codes in upper]
    before = zip(*(grid.roll(1, 0).split(sizes) for grid in every), strict=True)
    swapped = [tokenizer.nll(x, codes).cpu().double() for x, codes in zip(below, before, strict=True)]
    rows = torch.stack([grid.flatten() for grid in every], 1).cpu()
    _, counts = rows.unique(dim=0, return_counts=True)
    bits = float(torch.cat(own).mean()) / math.log(2)
    return {
        "bits_per_image": bits,
        "bits_per_code": bits / tokenizer.num_codes,
        "swapped_bits_per_image": float(torch.cat(swapped).mean()) / math.log(2),
        **({"accuracy": sum(hits) / len(rows)} if hits else {}),
        "joint_bits": float(torch.special.entr(counts.double() / len(rows)).sum()) / math.log(2),
        "distinct": len(counts),
        **usage.figures()._asdict(),
        "grids": [one._asdict() for one in usage.by_grid()],
    }


def measure_lower_codes(stack: Sequence[Any], images: Iterable[torch.Tensor]) -> dict[str, Any]:
    """Return what the codes of the last of several tokenizers tell of those below, for images (b, c, *size) in [-1, 1].

    The metrics are some of `measure_codes_of_codes`, with names of their own.
    """
    *lower, upper = stack
    found = measure_codes_of_codes(upper, (_encode(lower, batch) for batch in images))
    of_lower = {name: found[key] for name, key in OF_LOWER_CODES.items() if key in found}
    return {**of_lower, "upper_capacity": capacity_of(upper)}


def _encode(tokenizers: Sequence[Any], x: Any) -> Codes:
    """Return the codes of images x (b, c, *size) that went through several tokenizers in turn."""
    for tokenizer in tokenizers:
        x = tokenizer.encode(x)
    return cast(Codes, x)


def capacity_of(tokenizer: Any) -> float:
    """Return the most bits that the codes of an image can hold."""
    return sum(grid.num_sites * math.log2(grid.num_embeddings) for grid in tokenizer.layout)


def gradient_norms(tokenizer: Any, codes: Codes) -> dict[str, float]:
    """Return the norm of the gradient of each loss at the latents, `reconstruction_gradient` and so on.

    If the commitment loss outweighs the others by far, it pulls the encoder to a point.
    """
    x = tuple(grid.to(tokenizer.device) for grid in codes)
    latents = tokenizer.encode_latents(x)[-1].detach().requires_grad_()
    with torch.enable_grad():
        terms = tokenizer.reconstruct_from(latents, x).losses.terms
        return {name: float(norm) for name, norm in gradients_at(latents, terms).items()}
