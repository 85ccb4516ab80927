"""A tokenizer as a folder that diffusers loads: `VQModel.from_pretrained(folder)`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codegrid.errors import InputError
from codegrid.files import write_json
from codegrid.tensors import write_tensors

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
OURS = re.compile(r"^(encoder|decoder)\.(encoder|decoder|quant_conv|post_quant_conv)\.")


def write(tokenizer: Any, folder: Path) -> None:
    """Write its config and its weights.

    Raises `InputError` if its networks are not those of VQ-GAN, or its codes not those of one codebook.
    """
    state = tokenizer.state_dict()
    book = state.get("quantizer.codebook")
    if book is None or getattr(tokenizer.quantizer, "distance", "") != "euclidean":
        raise InputError("`to` diffusers: the tokenizer must have one codebook and the euclidean `distance`")
    # in the network vqgan there are convolutions beside the codes; resnet ends without
    parts = {OURS.sub(r"\2.", name): tensor for name, tensor in state.items() if not name.startswith("quantizer.")}
    if "encoder.mid_block.resnets.0.conv1.weight" not in parts:
        raise InputError("`to` diffusers: its `network` must be resnet or vqgan")
    for name in ("quant_conv", "post_quant_conv"):
        parts.setdefault(f"{name}.weight", torch.eye(book.shape[1])[:, :, None, None])
        parts.setdefault(f"{name}.bias", torch.zeros(book.shape[1]))
    outputs = len(parts["decoder.conv_out.weight"])
    if parts["quant_conv.weight"].shape[2] != 1 or outputs != tokenizer.signal.channels:
        words = "its convolutions beside the codes must be 1×1, and its decoder must make images"
        raise InputError(f"`to` diffusers: {words} (`reconstruction` mse or l1)")
    norm = next(module for module in tokenizer.encoder.modules() if isinstance(module, nn.GroupNorm))
    write_json(folder / CONFIG, _config(parts, tokenizer.signal, book, norm.num_groups))
    write_tensors(folder / WEIGHTS, {**parts, "quantize.embedding.weight": book})


def _config(parts: Mapping[str, Tensor], signal: Any, book: Tensor, groups: int) -> dict[str, Any]:
    sizes = 1 + max(int(name.split(".")[2]) for name in parts if name.startswith("encoder.down_blocks."))
    attends = [f"encoder.down_blocks.{size}.attentions.0.to_q.weight" in parts for size in range(sizes)]
    blocks = {name.split(".")[4] for name in parts if name.startswith("encoder.down_blocks.0.resnets.")}
    widths = [len(parts[f"encoder.down_blocks.{size}.resnets.0.conv2.weight"]) for size in range(sizes)]
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": [f"{'Attn' * attend}DownEncoderBlock2D" for attend in attends],
        "in_channels": signal.channels,
        "latent_channels": len(parts["encoder.conv_out.weight"]),
        "layers_per_block": len(blocks),
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in parts,
        "norm_num_groups": groups,
        "norm_type": "group",
        "num_vq_embeddings": len(book),
        "out_channels": signal.channels,
        "sample_size": max(signal.size),
        "up_block_types": [f"{'Attn' * attend}UpDecoderBlock2D" for attend in reversed(attends)],
        "vq_embed_dim": book.shape[1],
    }
