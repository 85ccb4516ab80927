"""Encoder and decoder of VQ-GAN with all of their sizes free, for the checkpoints of others.

They are made of the layers of the `resnet` network, and between them and the codes stand convolutions of their own, as
in taming-transformers, latent diffusion, LlamaGen, VAR and the `VQModel` of diffusers.

Shapes: b batch, c channels, h w the code grid, H W an image.
"""

from collections import OrderedDict
from typing import Any

from torch import nn

from codegrid.errors import InputError
from codegrid.limits import make_options

from .network_options import VQGANOptions
from .resnet import Decoder, Encoder, Enlarge, Sizes, groups_of


class VQGANNetwork:
    """Residual networks with attention: as wide as their `channel_multipliers` say at each size.

    Args:
        hidden_channels: the width that is multiplied.
        options: those of `VQGANOptions`.

    Raises `InputError` if an option is unknown or out of its range, or `norm_groups` does not divide each width.
    """

    def __init__(self, hidden_channels: int = 128, **options: Any) -> None:
        self.hidden_channels = hidden_channels
        self.settings: VQGANOptions = make_options(VQGANOptions, options, "the vqgan network")
        groups = self.settings.norm_groups
        for width in (hidden_channels * number for number in self.settings.channel_multipliers):
            if groups is not None and width % groups:
                raise InputError(f"`norm_groups` {groups}: it must divide the {width} channels of each layer")

    def encoder(self, in_channels: int, out_channels: int | None, factor: int) -> nn.Module:
        """Return an encoder, as `codegrid.protocols.Network.encoder`."""
        if out_channels is None:
            return Encoder(in_channels, self.hidden_channels, self._sizes(factor))
        latents = self.settings.latent_channels
        encoder = Encoder(in_channels, latents, self._sizes(factor))
        return nn.Sequential(OrderedDict(encoder=encoder, quant_conv=self._between(latents, out_channels)))

    def decoder(self, in_channels: int, out_channels: int, factor: int) -> nn.Module:
        """Return a decoder, as `codegrid.protocols.Network.decoder`."""
        latents = self.settings.latent_channels
        decoder = Decoder(latents, out_channels, self._sizes(factor))
        return nn.Sequential(OrderedDict(post_quant_conv=self._between(in_channels, latents), decoder=decoder))

    def enlarger(self, channels: int, factor: int) -> nn.Module:
        """Return layers that only enlarge, as `codegrid.protocols.Network.enlarger`."""
        return nn.Sequential(*(Enlarge(channels) for _ in range(factor.bit_length() - 1)))

    def values_per_pixel(self, factor: int) -> int:
        """Return the width of the decoder's largest layer, as `codegrid.protocols.Network.values_per_pixel`."""
        widths = self._sizes(factor).widths
        # a size is left with the width that it had, at twice the sides
        shares = [widths[0], *(-(-width // 4**number) for number, width in enumerate(widths[1:]))]
        return max(*shares, -(-self.settings.latent_channels // factor**2))

    def _sizes(self, factor: int) -> Sizes:
        """Return the plan of networks for a factor: the last multipliers, with the first one repeated if too few."""
        options, count = self.settings, factor.bit_length()
        multipliers = options.channel_multipliers
        multipliers = (multipliers[0],) * (count - len(multipliers)) + multipliers[-count:]
        widths = [self.hidden_channels * number for number in multipliers]
        attends = tuple(count - 1 - size for size in options.attention_sizes)
        return Sizes(
            widths,
            options.num_residual_blocks,
            options.norm_groups or groups_of(widths),
            attends,
            options.middle_attention,
        )

    def _between(self, inputs: int, outputs: int) -> nn.Conv2d:
        """Return a convolution between a network and the codes."""
        kernel = self.settings.latent_kernel
        return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
