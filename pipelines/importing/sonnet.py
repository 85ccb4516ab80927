"""Parameters of Sonnet's VQ-VAE example, over images in [-½, ½], as an .npz or .safetensors file.

Each variable is stored by the name that TensorFlow gives it, such as `encoder/enc_1/w:0`. Its layers are (h, w, inputs,
outputs), and those of transposed convolutions (h, w, outputs, inputs); the codebook is (D, K).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from codegrid.codes import Sides
from codegrid.errors import InputError

from .building import Source, count, make_tokenizer
from .checkpoint import Checkpoint
from .plain import decoder_plan, doubled, encoder_plan, numbered, sizes_of

SIZE = (32, 32)
BOOK = "embeddings"
HITS = "ema_cluster_size/hidden"


def without_scopes(checkpoint: Checkpoint) -> Checkpoint:
    """Return the tensors by the ends of their names: `enc_1/w`, `decoder/res3x3_0/b`, `embeddings`."""
    found: dict[str, Tensor] = {}
    for name, tensor in checkpoint.tensors.items():
        parts = [part.partition(":")[0] for part in name.split("/")]
        short = "/".join(parts[-2:]) if parts[-1] in ("w", "b", "hidden") else parts[-1]
        if short.startswith("res"):
            short = f"{'decoder' if any('decoder' in part for part in parts) else 'encoder'}/{short}"
        found[short] = tensor
    return Checkpoint(checkpoint.path, found)


def convert(checkpoint: Checkpoint, size: Sides | None) -> Any:
    """Return the tokenizer, over images in [-1, 1]."""
    own = without_scopes(checkpoint)
    blocks = count(own.tensors, "encoder/res3x3_{}/w")

    def layer(name: str) -> tuple[Tensor, Tensor]:
        weight = own.take(f"{name}/w")
        if weight.ndim != 4:
            raise InputError(f"{checkpoint.path}: {name}/w has {weight.ndim} axes, not 4: it is another variant")
        return weight.permute(3, 2, 0, 1).contiguous(), own.take(f"{name}/b")

    inner = [f"res{side}x{side}_{block}" for block in range(blocks) for side in (3, 1)]
    down = ["enc_1", "enc_2", "enc_3", *(f"encoder/{name}" for name in inner), "to_vq"]
    up = ["dec_1", *(f"decoder/{name}" for name in inner), "dec_2", "dec_3"]
    to_images = decoder_plan(2, blocks)
    weights = {
        **numbered([layer(name) for name in down], "encoder.", encoder_plan(2, blocks)),
        **numbered([layer(name) for name in up], "decoder.", to_images),
        "quantizer.codebook": own.take(BOOK).t().contiguous(),
    }
    moves = HITS in own.tensors
    if moves:
        weights["quantizer.running_hits"] = own.take(HITS)
    entries, width = weights["quantizer.codebook"].shape
    books = {"quantizer": "ema" if moves else "gradient", "num_embeddings": entries, "embedding_dim": width}
    sizes = {"network": "notebook", "rectified_skips": "first", **sizes_of(weights, blocks, 5)}
    channels = weights["encoder.0.weight"].shape[1]
    weights = doubled(weights, "encoder.0.", f"decoder.{to_images[-1]}.")
    return make_tokenizer(checkpoint, "vqvae", weights, size or SIZE, channels, **sizes, **books)


SOURCE = Source("VQ-VAE example of Sonnet", ("enc_1/w", "to_vq/w", "dec_3/w", BOOK), SIZE, convert, without_scopes)
