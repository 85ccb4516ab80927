"""VQ-GANs of taming-transformers (Esser et al. 2021), and the VQ models of latent diffusion, which have its names."""

from __future__ import annotations

from typing import Any

from codegrid.codes import Sides

from .building import Source
from .checkpoint import Checkpoint
from .residual import ATTENTION, BLOCKS, make_vqgan, rename

SIZE = (256, 256)
LOGITS = "quantize.proj.weight"  # of the variant that draws codes in training
RULES = (
    (r"^encoder\.down\.", "encoder.down_blocks."),
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.downsample\.", ".downsamplers.0."),
    (r"\.upsample\.", ".upsamplers.0."),
    *BLOCKS,
    *ATTENTION,
)


def from_image_on(name: str, sizes: int) -> str:
    """Return a decoder's name: there its sizes are counted from the image on, here from the code grid on."""
    head, _, rest = name.partition("decoder.up.")
    number, dot, tail = rest.partition(".")
    return name if head or not number.isdigit() else f"decoder.up_blocks.{sizes - 1 - int(number)}{dot}{tail}"


def convert(checkpoint: Checkpoint, size: Sides | None) -> Any:
    """Return the tokenizer."""
    sizes = len({name.split(".")[2] for name in checkpoint.tensors if name.startswith("encoder.down.")})
    named = {from_image_on(name, sizes): each.float() for name, each in checkpoint.tensors.items()}
    tensors = rename(named, RULES)
    kind, book = ("gumbel", "quantize.embed.weight") if LOGITS in tensors else ("gradient", "quantize.embedding.weight")
    codes = {"quantizer.codebook": checkpoint.take(book)}
    if LOGITS in tensors:
        codes["quantizer.to_logits.weight"] = tensors[LOGITS].flatten(1)
        codes["quantizer.to_logits.bias"] = checkpoint.take("quantize.proj.bias")
    return make_vqgan(checkpoint, tensors, codes, size or SIZE, quantizer=kind)


SOURCE = Source(
    "VQ-GAN of taming-transformers, VQ models of latent diffusion",
    ("encoder.down.0.block.0.norm1.weight", "encoder.mid.block_1.norm1.weight", "quant_conv.weight"),
    SIZE,
    convert,
)
