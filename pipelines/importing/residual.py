"""Networks of VQ-GAN from the weights of others: taming-transformers, diffusers, LlamaGen and VAR differ in names only.

Names are those of the `vqgan` network: what begins with `encoder.`, `decoder.`, `quant_conv.` or `post_quant_conv.`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from codegrid.codes import Sides
from codegrid.errors import InputError

from .building import count, make_tokenizer, of_shape
from .checkpoint import Checkpoint

# linear layers over channels, which other projects write as 1×1 convolutions
LINEAR = re.compile(r"\.(to_q|to_k|to_v|to_out\.0)\.weight$")
GROUPS = 32
Renaming = Sequence[tuple[str, str]]
BLOCKS: Renaming = ((r"\.nin_shortcut\.", ".conv_shortcut."), (r"(^|\.)norm_out\.", r"\1conv_norm_out."))
ATTENTION: Renaming = (
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.(q|k|v)\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


def rename(tensors: Mapping[str, Tensor], rules: Renaming) -> dict[str, Tensor]:
    """Return tensors whose names are changed by all rules, in order; those of attention as linear layers."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor.flatten(1) if LINEAR.search(name) else tensor
    return renamed


def networks_of(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], groups: int = GROUPS) -> dict[str, Any]:
    """Return the options of a tokenizer with `network` vqgan whose encoder has these weights.

    Raises `InputError` if its widths have no common divisor.
    """
    part = Checkpoint(checkpoint.path, dict(tensors))
    sizes = count(tensors, "encoder.down_blocks.{}.resnets.0.conv1.weight")
    part.take("encoder.down_blocks.0.resnets.0.conv1.weight")
    widths = [len(part.take(f"encoder.down_blocks.{size}.resnets.0.conv2.weight")) for size in range(sizes)]
    hidden = math.gcd(*widths)
    if hidden < 2:
        raise InputError(f"{checkpoint.path}: its widths {widths} have no common divisor: it is another variant")
    attends = [
        sizes - 1 - size for size in range(sizes) if f"encoder.down_blocks.{size}.attentions.0.to_q.weight" in tensors
    ]
    return {
        "network": "vqgan",
        "hidden_channels": hidden,
        "num_residual_blocks": count(tensors, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
        "channel_multipliers": [width // hidden for width in widths],
        "attention_sizes": attends,
        "middle_attention": "encoder.mid_block.attentions.0.to_q.weight" in tensors,
        "latent_channels": len(part.take("encoder.conv_out.weight")),
        "latent_kernel": part.take("quant_conv.weight").shape[-1],
        "norm_groups": groups,
        "downsampling": 2 ** (sizes - 1),
    }


def make_vqgan(
    checkpoint: Checkpoint,
    tensors: Mapping[str, Tensor],
    codes: Mapping[str, Tensor],
    size: Sides,
    groups: int = GROUPS,
    **quantizer: Any,
) -> Any:
    """Return a tokenizer with `network` vqgan.

    Args:
        tensors: of its networks, by their names.
        codes: of its quantizer, by our names; the first one is the codebook (K, D).
        size: of the images.
        groups: of all normalizations.
        quantizer: its options, but for those that the codebook tells.

    Raises `InputError` if tensors are missing, left over, or do not fit.
    """
    book = next(iter(codes.values()))
    if book.ndim != 2:
        raise InputError(f"{checkpoint.path}: its codebook has {book.ndim} axes, not 2: it is another variant")
    options = networks_of(checkpoint, tensors, groups) | {"num_embeddings": len(book), "embedding_dim": book.shape[1]}
    channels = of_shape(checkpoint, "encoder.conv_in.weight", 4)[1]
    return make_tokenizer(checkpoint, "vqvae", {**placed(tensors), **codes}, size, channels, **options, **quantizer)


def placed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the networks by their names in a tokenizer."""
    places = {"encoder": "encoder.", "quant_conv": "encoder.", "decoder": "decoder.", "post_quant_conv": "decoder."}
    return {
        f"{places[name.partition('.')[0]]}{name}": tensor
        for name, tensor in tensors.items()
        if name.partition(".")[0] in places
    }
