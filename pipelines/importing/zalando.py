"""The VQ-VAE of the notebook zalandoresearch/pytorch-vq-vae, over images in [-½, ½], with either of its codebooks."""

from __future__ import annotations

from typing import Any

from codegrid.codes import Sides

from .building import Source, count, make_tokenizer, of_shape
from .checkpoint import Checkpoint
from .plain import decoder_plan, doubled, encoder_plan, numbered, pair, sizes_of

SIZE = (32, 32)
HITS = "_vq_vae._ema_cluster_size"


def convert(checkpoint: Checkpoint, size: Sides | None) -> Any:
    """Return the tokenizer, over images in [-1, 1]."""
    blocks = count(checkpoint.tensors, "_encoder._residual_stack._layers.{}._block.1.weight")
    inner = [f"_residual_stack._layers.{block}._block.{layer}" for block in range(blocks) for layer in (1, 3)]
    down = [*(f"_encoder._conv_{number}" for number in (1, 2, 3)), *(f"_encoder.{name}" for name in inner)]
    up = ["_decoder._conv_1", *(f"_decoder.{name}" for name in inner)]
    up += ["_decoder._conv_trans_1", "_decoder._conv_trans_2"]
    to_images = decoder_plan(2, blocks)
    weights = {
        **numbered([pair(checkpoint, name) for name in (*down, "_pre_vq_conv")], "encoder.", encoder_plan(2, blocks)),
        **numbered([pair(checkpoint, name) for name in up], "decoder.", to_images),
        "quantizer.codebook": checkpoint.take("_vq_vae._embedding.weight"),
    }
    moves = HITS in checkpoint.tensors
    if moves:
        weights["quantizer.running_hits"] = checkpoint.take(HITS)
    entries, width = of_shape(checkpoint, "_vq_vae._embedding.weight", 2)
    books = {"quantizer": "ema" if moves else "gradient", "num_embeddings": entries, "embedding_dim": width}
    channels = of_shape(checkpoint, "_encoder._conv_1.weight", 4)[1]
    sizes = {"network": "notebook", **sizes_of(weights, blocks, 5)}
    weights = doubled(weights, "encoder.0.", f"decoder.{to_images[-1]}.")
    return make_tokenizer(checkpoint, "vqvae", weights, size or SIZE, channels, **sizes, **books)


SOURCE = Source(
    "VQ-VAE of zalandoresearch/pytorch-vq-vae",
    ("_encoder._conv_1.weight", "_pre_vq_conv.weight", "_vq_vae._embedding.weight"),
    SIZE,
    convert,
)
