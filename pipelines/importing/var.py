"""Tokenizers of VAR (Tian et al. 2024): a VQ-GAN over codes of several scales.

A checkpoint does not tell its scales, but how many there are. They are taken to be those of the published models.
"""

from __future__ import annotations

from typing import Any

import numpy
import torch

from codegrid.codes import Sides
from codegrid.errors import InputError

from .building import Source, count, of_shape
from .checkpoint import Checkpoint
from .residual import make_vqgan, rename
from .taming import RULES, SIZE, from_image_on

SCALES = {16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}  # by the side of the codes
HITS = "quantize.ema_vocab_hit_SV"  # (S, K)
PHI = "quantize.quant_resi.qresi_ls.{}."
SHARED = "quantize.quant_resi.qresi."


def convert(checkpoint: Checkpoint, size: Sides | None) -> Any:
    """Return the tokenizer, with a convolution φ for each scale."""
    sizes = len({name.split(".")[2] for name in checkpoint.tensors if name.startswith("encoder.down.")})
    split = {}
    for name, tensor in checkpoint.below("").items():
        name = from_image_on(name, sizes)
        parts = tensor.chunk(3) if ".qkv." in name else (tensor,)
        split.update({name.replace(".qkv.", f".{one}."): part for one, part in zip("qkv", parts, strict=False)})
    tensors = rename(split, RULES)
    size, factor = size or SIZE, 2 ** (sizes - 1)
    scales = _scales(checkpoint, max(-(-side // factor) for side in size))
    own = [_phi_name(checkpoint, number, len(scales)) for number in range(len(scales))]
    codes = {
        "quantizer.book.codebook": checkpoint.take("quantize.embedding.weight"),
        "quantizer.phi_weight": torch.stack([checkpoint.take(f"{name}weight") for name in own]),
        "quantizer.phi_bias": torch.stack([checkpoint.take(f"{name}bias") for name in own]),
    }
    own_options: dict[str, Any] = {"codebook": "gradient", "scales": list(scales), "num_phi": len(scales)}
    return make_vqgan(checkpoint, tensors, codes, size, quantizer="multiscale", **own_options)


def _scales(checkpoint: Checkpoint, side: int) -> tuple[int, ...]:
    """Return the scales for codes of this side. Raises `InputError` if they cannot be those of the published models."""
    number = of_shape(checkpoint, HITS, 2)[0]
    if side not in SCALES:
        known = " and ".join(map(str, SCALES))
        raise InputError(f"`size`: the code grid would have the side {side}, but scales are known for {known}")
    if number != len(SCALES[side]):
        words = f"it has {number} scales, but only those of the published models are known"
        raise InputError(f"{checkpoint.path}: {words}: {' '.join(map(str, SCALES[side]))}")
    return SCALES[side]


def _phi_name(checkpoint: Checkpoint, number: int, scales: int) -> str:
    """Return the prefix of the convolution of one scale."""
    few = count(checkpoint.tensors, f"{PHI}weight")
    if not few:
        return SHARED
    # partly shared ones are told apart by the nearest of these numbers; ties are common, and rounding decides them
    margin = 1 / 3 / few if few == 4 else 1 / 2 / few
    ticks = numpy.linspace(margin, 1 - margin, few)
    return PHI.format(int(numpy.argmin(numpy.abs(ticks - number / (scales - 1)))))


SOURCE = Source(
    "tokenizer of VAR",
    ("encoder.mid.attn_1.qkv.weight", "quantize.embedding.weight", HITS),
    SIZE,
    convert,
)
