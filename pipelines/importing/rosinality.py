"""VQ-VAE-2 of rosinality/vq-vae-2-pytorch, over images in [-1, 1]: two levels, the coarse one called top.

Its decoder of the top's codes makes D numbers at each finer site, where ours makes as many as the encoder: the others
are 0, and so are the weights that read them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from codegrid.codes import Sides
from codegrid.errors import InputError

from .building import Source, count, make_tokenizer, of_shape
from .checkpoint import Checkpoint
from .plain import decoder_plan, encoder_plan, numbered, pair

SIZE = (256, 256)


def convert(checkpoint: Checkpoint, size: Sides | None) -> Any:
    """Return the tokenizer. Raises `InputError` if its codes have more numbers than its features."""
    blocks = count(checkpoint.tensors, "enc_b.blocks.{}.conv.1.weight", 5)
    width, entries = of_shape(checkpoint, "quantize_t.embed", 2)
    hidden = len(checkpoint.take("enc_b.blocks.4.weight"))
    channels = of_shape(checkpoint, "enc_b.blocks.0.weight", 4)[1]
    if width > hidden:
        raise InputError(f"{checkpoint.path}: codes of {width} numbers, but {hidden} channels: it is another variant")
    weights = {
        **_encoder(checkpoint, "enc_b", "encoders.1.", 2, blocks),
        **_encoder(checkpoint, "enc_t", "encoders.0.", 1, blocks),
        **_decoder(checkpoint, "dec_t", "decoders.0.", 1, blocks),
        **_decoder(checkpoint, "dec", "decoders.1.", 2, blocks),
        **numbered([pair(checkpoint, "quantize_conv_t"), pair(checkpoint, "quantize_conv_b")], "to_latents.", (0, 1)),
        **numbered([pair(checkpoint, "upsample_t")], "enlargers.0.", (0,)),
    }
    _widen(weights, width, hidden, blocks)
    for number, level in enumerate(("t", "b")):
        weights[f"quantizer.{number}.codebook"] = checkpoint.take(f"quantize_{level}.embed").t().contiguous()
        weights[f"quantizer.{number}.running_hits"] = checkpoint.take(f"quantize_{level}.cluster_size")
    inside = {"residual_channels": len(checkpoint.take("enc_b.blocks.5.conv.1.weight"))} if blocks else {}
    options = {
        "levels": [4, 2], "hidden_channels": hidden, "num_residual_blocks": blocks, **inside, "quantizer": "ema",
        "num_embeddings": entries, "embedding_dim": width,
    }  # fmt: skip
    return make_tokenizer(checkpoint, "vqvae2", weights, size or SIZE, channels, **options)


def _encoder(checkpoint: Checkpoint, name: str, place: str, halvings: int, blocks: int) -> dict[str, Tensor]:
    """Return the layers of an encoder, whose places are the same as ours."""
    own = [f"{name}.blocks.{number}" for number in range(0, 2 * halvings + 1, 2)]
    own += _inner(name, 2 * halvings + 1, blocks)
    return numbered([pair(checkpoint, each) for each in own], place, encoder_plan(halvings, blocks, last=False))


def _decoder(checkpoint: Checkpoint, name: str, place: str, doublings: int, blocks: int) -> dict[str, Tensor]:
    """Return the layers of a decoder, whose places are the same as ours."""
    own = [f"{name}.blocks.0", *_inner(name, 1, blocks)]
    own += [f"{name}.blocks.{blocks + 2 + 2 * number}" for number in range(doublings)]
    return numbered([pair(checkpoint, each) for each in own], place, decoder_plan(doublings, blocks))


def _inner(name: str, first: int, blocks: int) -> list[str]:
    return [f"{name}.blocks.{first + block}.conv.{layer}" for block in range(blocks) for layer in (1, 3)]


def _widen(weights: dict[str, Tensor], width: int, hidden: int, blocks: int) -> None:
    """Put zeros where ours have more numbers, and change the order of what is joined: ours has the finer part first."""
    last = f"decoders.0.{blocks + 2}"
    weight, bias = weights[f"{last}.weight"], weights[f"{last}.bias"]  # transposed: (inputs, outputs, 4, 4)
    missing = weight.new_zeros(len(weight), hidden - width, *weight.shape[2:])
    weights[f"{last}.weight"] = torch.cat([weight, missing], 1)
    weights[f"{last}.bias"] = torch.cat([bias, bias.new_zeros(hidden - width)])
    above, own = weights["to_latents.1.weight"].split([width, weights["to_latents.1.weight"].shape[1] - width], 1)
    weights["to_latents.1.weight"] = torch.cat([own, above, above.new_zeros(len(own), hidden - width, 1, 1)], 1)
    top, bottom = weights["decoders.1.0.weight"].tensor_split([width], 1)
    weights["decoders.1.0.weight"] = torch.cat([bottom, top], 1)


SOURCE = Source(
    "VQ-VAE-2 of rosinality/vq-vae-2-pytorch",
    ("enc_b.blocks.0.weight", "quantize_conv_t.weight", "quantize_t.embed", "quantize_b.embed"),
    SIZE,
    convert,
)
