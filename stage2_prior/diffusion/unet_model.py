"""The network of an unconditional diffusion prior as a UNet2DModel of diffusers, which is called without a text."""

from __future__ import annotations

from typing import Any

from torch import nn

from codegrid.errors import InputError

from .network import import_diffusers
from .prior import DiffusionPrior

COMMON = (
    "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block",
    "norm_num_groups", "norm_eps", "attention_head_dim", "flip_sin_to_cos", "freq_shift",
)  # fmt: skip


def check_prior(prior: Any) -> DiffusionPrior:
    """Return a prior if its network can be a UNet2DModel of diffusers. Raises `InputError` if it cannot."""
    if not isinstance(prior, DiffusionPrior):
        raise InputError(
            f"`prior`: a {type(prior).__name__}: diffusers needs one UNet: train one with `model` diffusion"
        )
    if prior.conditions.num_words or prior.conditions.num_classes:
        what = "texts" if prior.conditions.num_words else "labels"
        raise InputError(f"`prior`: it learnt {what}, which LDMPipeline cannot ask for: train one `unconditional`")
    side, least = prior.layout[0].shape[0], 2 ** (prior.chosen.num_levels - 1)
    if side % least:
        raise InputError(
            f"`prior`: grids {side} wide: LDMPipeline needs a multiple of {least}: give fewer `num_levels`"
        )
    if not prior.vectors.spread.eq(prior.vectors.spread[0]).all():
        words = "its channels have scales of their own, and LDMPipeline has one for all: train one with `one_scale`"
        raise InputError(f"`prior`: {words}")
    return prior


def as_unet_model(prior: DiffusionPrior) -> Any:
    """Return the network of a prior that `check_prior` accepts as a UNet2DModel of diffusers."""
    unet = prior.network.unet
    common = {name: unet.config[name] for name in COMMON}
    model = import_diffusers().UNet2DModel(**common, sample_size=unet.config.sample_size[0], add_attention=False)
    model.load_state_dict(unet.state_dict(), strict=False)
    # the middle has one residual block more than ours: it adds nothing
    for parameter in model.mid_block.resnets[1].conv2.parameters():
        nn.init.zeros_(parameter)
    return model.eval()
