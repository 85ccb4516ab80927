"""The network of latent diffusion: the UNet of diffusers, and an encoder of texts beside it.

Shapes: b batch, h w code grid, D embedding_dim, t words of a text.
"""

from __future__ import annotations

from math import gcd
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from codegrid.codes import Sides
from codegrid.errors import InputError, import_extra
from codegrid.stage2_prior.options import DiffusionOptions
from codegrid.stage2_prior.transformer.layers import initialise
from codegrid.stage2_prior.transformer.words import WordEncoder

GROUP = 8  # channels that are normalised together


def import_diffusers() -> Any:
    """Return diffusers: not imported at the head of a file, as it takes seconds, and only this prior needs it."""
    return import_extra("diffusers", "a diffusion prior", "diffusion")


class DenoisingNetwork(nn.Module):
    """A UNet that predicts v from noisy vectors, with attention at its smallest size, also to the words of texts.

    Args:
        embedding_dim: D.
        shape: of the grids.
        options: the sizes.
        num_conditions: the rows of the table of labels; 0: none.
        num_words, text_length: the sizes of the vocabulary and of texts; 0: none.
    """

    def __init__(
        self,
        embedding_dim: int,
        shape: Sides,
        options: DiffusionOptions,
        num_conditions: int = 0,
        num_words: int = 0,
        text_length: int = 0,
    ) -> None:
        super().__init__()
        first, heads = options.channels, options.num_heads
        widths = [first * 2**level for level in range(options.num_levels)]
        if widths[-1] % heads:
            words = f"the smallest size has {widths[-1]}, which must be a multiple of `num_heads`, {heads}"
            raise InputError(f"`channels` {first}: {words}")
        # without texts, the blocks that enlarge have no attention: those of diffusers cannot make odd sides
        down, middle, up, of_heads = "AttnDownBlock2D", "UNetMidBlock2D", "UpBlock2D", widths[-1] // heads
        if num_words:  # here `attention_head_dim` is, in spite of its name, the number of heads
            down, middle, up, of_heads = "CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "CrossAttnUpBlock2D", heads
        self.unet = import_diffusers().UNet2DConditionModel(
            sample_size=shape,
            in_channels=embedding_dim,
            out_channels=embedding_dim,
            down_block_types=("DownBlock2D",) * (len(widths) - 1) + (down,),
            mid_block_type=middle,
            up_block_types=(up,) + ("UpBlock2D",) * (len(widths) - 1),
            block_out_channels=tuple(widths),
            layers_per_block=options.num_layers,
            norm_num_groups=gcd(first, max(1, first // GROUP)),
            attention_head_dim=of_heads,
            cross_attention_dim=first,
            num_class_embeds=num_conditions or None,
        )
        nn.init.zeros_(self.unet.conv_out.weight)  # the first loss is that of knowing nothing
        nn.init.zeros_(self.unet.conv_out.bias)
        self.words = None
        if num_words:
            self.words = WordEncoder(num_words, text_length, first, heads, options.text_layers)
            initialise(self.words, options.text_layers)

    def train(self, mode: bool = True) -> Self:
        """Switch to train or eval mode; the UNet, which drops nothing, stays in eval mode.

        In train mode, diffusers lays features out in another way, and results would differ in their last bits.
        """
        super().train(mode)
        self.unet.eval()
        return self

    def forward(
        self, noisy: Tensor, level: Tensor, rows: Tensor | None = None, text: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Predict v (b, D, h, w) from noisy vectors (b, D, h, w).

        Args:
            level: of noise, () or (b,).
            rows: (b,) of the table of labels.
            text: that of `encode`.
        """
        predicted: Tensor = self.unet(noisy, level, **(text or NO_TEXT), class_labels=rows).sample
        return predicted

    def encode(self, words: Tensor | None) -> dict[str, Tensor] | None:
        """Return texts (b, t) as the UNet takes them, once for all levels of noise; None if there are none."""
        if self.words is None:
            return None
        features, hidden = self.words(words)
        return {"encoder_hidden_states": features, "encoder_attention_mask": ~hidden}


NO_TEXT: dict[str, Any] = {"encoder_hidden_states": None}
