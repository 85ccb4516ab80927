"""The discrete VAE of DALL·E: a folder with the files encoder.pkl and decoder.pkl, each of a whole module.

There the encoder ends with logits, and the decoder begins with a layer that takes a code as one number of K. Here the
first is the quantizer's, and the vectors of the second are the codebook: wider than they are, with zeros, as latents
and entries have equally many numbers. The 1×1 convolutions that stand there instead change nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from codegrid.codes import Sides
from codegrid.errors import InputError

from .building import Source, count, make_tokenizer, of_shape
from .checkpoint import Checkpoint

SIZE = (256, 256)


def convert(checkpoint: Checkpoint, size: Sides | None) -> Any:
    """Return the tokenizer."""
    groups = count(checkpoint.tensors, "encoder.blocks.group_{}.block_1.res_path.conv_1.w", 1)
    blocks = count(checkpoint.tensors, "encoder.blocks.group_1.block_{}.res_path.conv_1.w", 1)
    entries, width = of_shape(checkpoint, "encoder.blocks.output.conv.w", 4)[:2]
    start = len(checkpoint.take("decoder.blocks.input.w"))
    hidden, channels = of_shape(checkpoint, "encoder.blocks.input.w", 4)[:2]
    if start > width:
        raise InputError(f"{checkpoint.path}: codes of {start} numbers, but {width} channels: it is another variant")
    last = 2 + groups * (blocks + 1)  # place of the last layer of both networks, but for the decoder's shorter start
    codebook = torch.zeros(entries, width)
    codebook[:, :start] = checkpoint.take("decoder.blocks.input.w")[:, :, 0, 0].T + checkpoint.take(
        "decoder.blocks.input.b"
    )
    weights = {
        **_layer(checkpoint, "encoder.blocks.input", "encoder.1"),
        **_groups(checkpoint, "encoder", 2, groups, blocks),
        f"encoder.{last}.weight": _passing_on(width, width),
        f"encoder.{last}.bias": torch.zeros(width),
        "quantizer.to_logits.weight": checkpoint.take("encoder.blocks.output.conv.w").flatten(1),
        "quantizer.to_logits.bias": checkpoint.take("encoder.blocks.output.conv.b"),
        "quantizer.codebook": codebook,
        "decoder.0.weight": _passing_on(start, width),
        "decoder.0.bias": torch.zeros(start),
        **_groups(checkpoint, "decoder", 1, groups, blocks),
        **_layer(checkpoint, "decoder.blocks.output.conv", f"decoder.{last - 1}"),
    }
    options = {
        "network": "dalle", "hidden_channels": hidden, "num_residual_blocks": blocks, "start_channels": start,
        "downsampling": 2 ** (groups - 1), "reconstruction": "logit-laplace", "quantizer": "gumbel",
        "num_embeddings": entries, "embedding_dim": width,
    }  # fmt: skip
    return make_tokenizer(checkpoint, "vqvae", weights, size or SIZE, channels, **options)


def _layer(checkpoint: Checkpoint, name: str, place: str) -> dict[str, Tensor]:
    return {f"{place}.weight": checkpoint.take(f"{name}.w"), f"{place}.bias": checkpoint.take(f"{name}.b")}


def _groups(checkpoint: Checkpoint, part: str, first: int, groups: int, blocks: int) -> dict[str, Tensor]:
    """Return the layers of all blocks; between groups of them there is a layer that changes the size."""
    found: dict[str, Tensor] = {}
    for group in range(groups):
        for block in range(blocks):
            name, place = (
                f"{part}.blocks.group_{group + 1}.block_{block + 1}",
                f"{part}.{first + group * (blocks + 1) + block}",
            )
            for layer in range(4):
                found |= _layer(checkpoint, f"{name}.res_path.conv_{layer + 1}", f"{place}.layers.{2 * layer + 1}")
            if f"{name}.id_path.w" in checkpoint.tensors:
                found |= _layer(checkpoint, f"{name}.id_path", f"{place}.shortcut")
    return found


def _passing_on(outputs: int, inputs: int) -> Tensor:
    """Return a 1×1 convolution of the first channels as they are: exact, as all that is added is 0."""
    return torch.eye(outputs, inputs)[:, :, None, None]


SOURCE = Source(
    "discrete VAE of DALL·E",
    ("encoder.blocks.input.w", "encoder.blocks.output.conv.w", "decoder.blocks.input.w"),
    SIZE,
    convert,
)
