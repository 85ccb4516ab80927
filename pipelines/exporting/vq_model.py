"""A tokenizer as a folder that diffusers loads: `VQModel.from_pretrained(folder)`.

Shapes: K num_embeddings, D embedding_dim.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from codegrid.errors import InputError
from codegrid.files import write_json
from codegrid.tensors import write_tensors

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
OURS = re.compile(r"^(encoder|decoder)\.(encoder|decoder|quant_conv|post_quant_conv)\.")


class VQModelFiles(NamedTuple):
    """Config and weights of a `VQModel`."""

    config: dict[str, Any]
    weights: dict[str, Tensor]

    def write(self, folder: Path) -> None:
        """Write both files into an existing folder."""
        write_json(folder / CONFIG, self.config)
        write_tensors(folder / WEIGHTS, self.weights)


def write(tokenizer: Any, folder: Path) -> None:
    """Write its config and its weights.

    Raises `InputError` if its networks are not those of VQ-GAN, or its codes not those of one codebook.
    """
    if getattr(tokenizer.quantizer, "distance", "") != "euclidean":
        raise InputError("`to` diffusers: the tokenizer must have one codebook and the euclidean `distance`")
    check_whole_sites(tokenizer)
    as_vq_model(tokenizer, tokenizer.quantizer.entries(0)).write(folder)


def check_whole_sites(tokenizer: Any) -> None:
    """Raise `InputError` if a grid covers more than the images."""
    size = tokenizer.signal.size
    if tuple(tokenizer.downsampling * sites for sites in tokenizer.layout[0].shape) != size:
        words = f"images of {'×'.join(map(str, size))} are not whole sites"
        raise InputError(f"`tokenizer`: {words}, and diffusers cannot crop: resize them")


def as_vq_model(
    tokenizer: Any, entries: Tensor, mean: Tensor | None = None, scale: float | None = None
) -> VQModelFiles:
    """Return the files of a tokenizer.

    Args:
        tokenizer: one of images.
        entries: vectors (K, D) of its codes.
        mean: (D,) that the convolutions beside the codes take away and add again, as it may be what a UNet's latents
            lack. Default: 0.
        scale: the number that a UNet's latents are divided by to become those of this model.

    Raises `InputError` if its networks are not those of VQ-GAN.
    """
    entries, mean = entries.cpu(), torch.zeros(entries.shape[1]) if mean is None else mean.cpu()
    state = {name: tensor.cpu() for name, tensor in tokenizer.state_dict().items()}
    # in the network vqgan there are convolutions beside the codes; resnet ends without
    parts = {OURS.sub(r"\2.", name): tensor for name, tensor in state.items() if not name.startswith("quantizer.")}
    if "encoder.mid_block.resnets.0.conv1.weight" not in parts:
        raise InputError("`to` diffusers: the tokenizer's network must be resnet or vqgan")
    for name in ("quant_conv", "post_quant_conv"):
        parts.setdefault(f"{name}.weight", torch.eye(len(mean))[:, :, None, None])
        parts.setdefault(f"{name}.bias", torch.zeros(len(mean)))
    outputs, behind = len(parts["decoder.conv_out.weight"]), parts["post_quant_conv.weight"]
    if behind.shape[2] != 1 or outputs != tokenizer.signal.channels:
        words = "its convolutions beside the codes must be 1×1, and its decoder must make images"
        raise InputError(f"`to` diffusers: {words} (`reconstruction` mse or l1)")
    parts["quant_conv.bias"] = parts["quant_conv.bias"] - mean
    parts["post_quant_conv.bias"] = parts["post_quant_conv.bias"] + behind.flatten(1) @ mean
    norm = next(module for module in tokenizer.encoder.modules() if isinstance(module, nn.GroupNorm))
    config = _config(parts, tokenizer.signal, entries, norm.num_groups)
    return VQModelFiles(
        config if scale is None else {**config, "scaling_factor": scale},
        {**parts, "quantize.embedding.weight": entries - mean},
    )


def _config(parts: Mapping[str, Tensor], signal: Any, entries: Tensor, groups: int) -> dict[str, Any]:
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
        "num_vq_embeddings": len(entries),
        "out_channels": signal.channels,
        "sample_size": max(signal.size),
        "up_block_types": [f"{'Attn' * attend}UpDecoderBlock2D" for attend in reversed(attends)],
        "vq_embed_dim": entries.shape[1],
    }
