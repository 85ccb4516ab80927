"""Tokenizers of LlamaGen (Sun et al. 2024): VQ-GANs whose entries and latents have unit length when they meet."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from codegrid.codes import Sides

from .building import Source
from .checkpoint import Checkpoint
from .residual import ATTENTION, BLOCKS, make_vqgan, rename

SIZE = (256, 256)
RULES = (
    (r"^encoder\.conv_blocks\.", "encoder.down_blocks."),
    (r"^decoder\.conv_blocks\.", "decoder.up_blocks."),
    (r"\.res\.(\d+)\.", r".resnets.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.mid\.0\.", ".mid_block.resnets.0."),
    (r"\.mid\.1\.", ".mid_block.attentions.0."),
    (r"\.mid\.2\.", ".mid_block.resnets.1."),
    (r"\.downsample\.", ".downsamplers.0."),
    (r"\.upsample\.", ".upsamplers.0."),
    *BLOCKS,
    *ATTENTION,
)


def convert(checkpoint: Checkpoint, size: Sides | None) -> Any:
    """Return the tokenizer: entries are stored with unit length, and the nearest is that of the smallest angle."""
    tensors = rename(checkpoint.below(""), RULES)
    codes = {"quantizer.codebook": F.normalize(checkpoint.take("quantize.embedding.weight"), dim=1)}
    return make_vqgan(checkpoint, tensors, codes, size or SIZE, quantizer="gradient", distance="cosine")


SOURCE = Source(
    "tokenizer of LlamaGen",
    ("encoder.conv_blocks.0.res.0.norm1.weight", "encoder.mid.1.q.weight", "quantize.embedding.weight"),
    SIZE,
    convert,
)
