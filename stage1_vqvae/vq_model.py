"""The VQ-VAE with residual networks as a VQModel of diffusers.

Shapes: K num_embeddings, D embedding_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from codegrid.codes import describe_layout
from codegrid.errors import InputError, import_extra

from .resnet import ResNet, groups_of
from .tokenizer import VQVAE


def check_tokenizer(tokenizer: Any) -> VQVAE:
    """Return a tokenizer if it can be a VQModel of diffusers. Raises `InputError` if it cannot."""
    if not isinstance(tokenizer, VQVAE) or not isinstance(tokenizer.network, ResNet):
        what = f"network {tokenizer.config['network']}" if isinstance(tokenizer, VQVAE) else type(tokenizer).__name__
        raise InputError(f"`tokenizer`: {what}: diffusers only has that of a vqvae with `network` resnet: train one")
    shape, size = tokenizer.layout[0].shape, "×".join(map(str, tokenizer.signal.size))
    if len(tokenizer.layout) > 1 or shape[0] != shape[1]:
        raise InputError(
            f"`tokenizer`: {describe_layout(tokenizer.layout)}: diffusers needs one grid, and a square one"
        )
    if tuple(tokenizer.downsampling * side for side in shape) != tokenizer.signal.size:
        raise InputError(f"`tokenizer`: images of {size} are not whole sites, and diffusers cannot crop: resize them")
    if tokenizer.reconstruction.outputs != tokenizer.signal.channels:
        name = tokenizer.config["reconstruction"]
        raise InputError(f"`tokenizer`: its decoder returns a likelihood, {name}: train one with `reconstruction` mse")
    return tokenizer


@torch.no_grad()
def as_vq_model(tokenizer: VQVAE, entries: torch.Tensor, mean: torch.Tensor, scale: float) -> Any:
    """Return a tokenizer as a VQModel of diffusers, for latents of mean 0.

    Args:
        tokenizer: one that `check_tokenizer` accepts.
        entries: vectors (K, D) of the codes.
        mean: of the vectors (D,). The model's codebook is the entries less the mean, and the convolution behind it adds
            the mean again.
        scale: the number that a UNet's latents are divided by to become the model's.
    """
    encoder: Any = tokenizer.encoder
    channels = tokenizer.signal.channels
    widths = tuple(block.resnets[-1].conv2.out_channels for block in encoder.down_blocks)
    model = import_extra("diffusers", "a pipeline of diffusers", "diffusion").VQModel(
        in_channels=channels, out_channels=channels, block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths), up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=len(encoder.down_blocks[0].resnets),
        norm_num_groups=groups_of(list(widths)), latent_channels=len(mean), vq_embed_dim=len(mean),
        num_vq_embeddings=len(entries), sample_size=tokenizer.signal.size[0], scaling_factor=scale,
    )  # fmt: skip
    model.encoder.load_state_dict(encoder.state_dict())
    model.decoder.load_state_dict(tokenizer.decoder.state_dict())
    model.quantize.embedding.weight.copy_(entries - mean)
    for convolution, shift in ((model.quant_conv, -mean), (model.post_quant_conv, mean)):
        nn.init.dirac_(convolution.weight)  # it only shifts
        convolution.bias.copy_(shift)
    return model.eval()
