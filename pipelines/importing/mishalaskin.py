"""The VQ-VAE of MishaLaskin/vqvae, over images in [-1, 1].

Its decoder begins with a transposed convolution; in the project's first version that was a convolution.
"""

from __future__ import annotations

from typing import Any

from codegrid.codes import Sides

from .building import Source, count, make_tokenizer, of_shape
from .checkpoint import Checkpoint
from .plain import decoder_plan, encoder_plan, numbered, pair, sizes_of

SIZE = (32, 32)
DOWN, UP = "encoder.conv_stack", "decoder.inverse_conv_stack"


def convert(checkpoint: Checkpoint, size: Sides | None) -> Any:
    """Return the tokenizer."""
    blocks = count(checkpoint.tensors, DOWN + ".5.stack.{}.res_block.1.weight")
    inner = [f"stack.{block}.res_block.{layer}" for block in range(blocks) for layer in (1, 3)]
    down = [*(f"{DOWN}.{layer}" for layer in (0, 2, 4)), *(f"{DOWN}.5.{name}" for name in inner)]
    up = [f"{UP}.0", *(f"{UP}.1.{name}" for name in inner), f"{UP}.2", f"{UP}.4"]
    entries, width = of_shape(checkpoint, "vector_quantization.embedding.weight", 2)
    first, *others = (pair(checkpoint, name) for name in up)
    if first[0].shape[0] == width:  # transposed; where inputs and outputs are equally many, nothing tells
        first = first[0].transpose(0, 1).flip(2, 3), first[1]
    weights = {
        **numbered([pair(checkpoint, name) for name in (*down, "pre_quantization_conv")], "encoder.",
                   encoder_plan(2, blocks)),
        **numbered([first, *others], "decoder.", decoder_plan(2, blocks)),
        "quantizer.codebook": checkpoint.take("vector_quantization.embedding.weight"),
    }  # fmt: skip
    books = {"quantizer": "gradient", "num_embeddings": entries, "embedding_dim": width}
    channels = of_shape(checkpoint, f"{DOWN}.0.weight", 4)[1]
    sizes = {"network": "notebook", **sizes_of(weights, blocks, 5)}
    return make_tokenizer(checkpoint, "vqvae", weights, size or SIZE, channels, **sizes, **books)


SOURCE = Source(
    "VQ-VAE of MishaLaskin/vqvae",
    ("encoder.conv_stack.0.weight", "pre_quantization_conv.weight", "vector_quantization.embedding.weight"),
    SIZE,
    convert,
)
