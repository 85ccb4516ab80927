"""PixelSNAIL (Chen et al. 2018, arXiv 1712.09763) over grids of codes.

Shapes: b batch, h w code grid, c channels, K num_embeddings of a grid.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from codegrid.codes import Codes, Condition, Layout, Losses, Moment
from codegrid.drawn_priors import Steps
from codegrid.protocols import NO_CONDITION
from codegrid.stage2_prior.coarser import CoarserNetwork, Conditioning, site_map_of
from codegrid.stage2_prior.labelled import GivenPrior
from codegrid.stage2_prior.likelihood import mean_nats
from codegrid.stage2_prior.options import PixelSNAILOptions
from codegrid.stage2_prior.sampling.backends import choose_backend
from codegrid.stage2_prior.sampling.sequential import PlainSteps, site_by_site
from codegrid.stage2_prior.site_codes import check_one_shape, embed, make_heads, read_heads

from .cache import PixelSNAILSteps
from .layers import AttentionLayer, InputLayer, ResidualLayer, positions


class Block(nn.Module):
    """Gated residual convolutions, then attention over all earlier sites."""

    def __init__(self, options: PixelSNAILOptions, num_conditions: int, map_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ResidualLayer(options.channels, options.kernel, num_conditions, map_channels)
            for _ in range(options.layers_per_block)
        )
        self.attention = AttentionLayer(options.channels, options.num_heads, options.head_channels)

    def forward(self, x: Tensor, embedded: Tensor, position: Tensor, given: Conditioning, dropout: float) -> Tensor:
        """Turn features and embedded codes (b, c, h, w), positions and conditions into the next features."""
        for layer in self.layers:
            x = layer(x, given, dropout)
        return self.attention(x, embedded, position)


class PixelSNAILNetwork(nn.Module):
    """The network from codes to logits: the part to use `torch.compile` on.

    If there are coarser grids, a network of its own turns them into a map, which each residual layer adds to its gates.
    """

    def __init__(
        self,
        layout: Layout,
        options: PixelSNAILOptions,
        num_conditions: int,
        given_layout: Layout = (),
        given_features: int = 0,
    ) -> None:
        super().__init__()
        channels = options.channels
        map_channels = options.condition_channels if given_layout or given_features else 0
        self.coarser = CoarserNetwork(given_layout, layout[0].shape, options) if given_layout else None
        self.of_features = nn.Conv2d(given_features, map_channels, 1) if given_features else None
        self.embeddings = nn.ModuleList(nn.Embedding(grid.num_embeddings, channels) for grid in layout)
        self.input = InputLayer(channels, options.kernel)
        self.blocks = nn.ModuleList(Block(options, num_conditions, map_channels) for _ in range(options.num_blocks))
        self.heads = make_heads(layout, channels)
        # embeds a site's codes for the heads of its later grids
        self.within_site = nn.ModuleList(nn.Embedding(grid.num_embeddings, channels) for grid in layout[:-1])

    def residual_layers(self) -> list[ResidualLayer]:
        """Return the residual layers of all blocks, in order."""
        return [module for module in self.modules() if isinstance(module, ResidualLayer)]

    def attention_layers(self) -> list[AttentionLayer]:
        """Return the attention layer of each block."""
        return [module for module in self.modules() if isinstance(module, AttentionLayer)]

    def conditioning(self, conditions: Tensor | None, coarser: Codes, features: Tensor | None) -> Conditioning:
        """Return what the gates add for condition rows (b,), coarser codes (b, *shape) and features (b, D, *sites).

        Features of a single site make a map of a single site, which holds for all of them.
        """
        return Conditioning(conditions, site_map_of(self.coarser, coarser, self.of_features, features))

    def forward(
        self,
        codes: Codes,
        conditions: Tensor | None,
        coarser: Codes = (),
        features: Tensor | None = None,
        dropout: float = 0.0,
    ) -> tuple[Tensor, ...]:
        """Turn codes (b, h, w) into logits (b, K, h, w).

        Args:
            codes: of each grid.
            conditions: rows (b,) of the layers' tables.
            coarser: codes (b, *shape) of the coarser grids.
            features: (b, D, *sites).
            dropout: the share of the features to drop.
        """
        given = self.conditioning(conditions, coarser, features)
        embedded = embed(self.embeddings, codes)
        position = positions(embedded)
        x = self.input(embedded, position)
        for block in self.blocks:
            x = block(x, embedded, position, given, dropout)
        return read_heads(self.heads, self.within_site, x, codes)


class PixelSNAIL(GivenPrior):
    """A PixelSNAIL: p(codes) = Π p(z_i | z_<i, label, coarser grids) in raster order, site after site.

    Convolutions see the near past, attention all of it.

    Args:
        layout: grids of the same shape (h, w), one for each code of a site; as `Grid`s, or as their JSON values.
        grids: their indices in the tokenizer's layout; by default 0, 1, ...
        num_classes: labels are 0 ... num_classes-1; 0 makes an unconditional prior.
        given_grids: numbers of the coarser grids that it is conditioned on.
        given_layout: these grids (h, w), of any sizes, coarse to fine.
        given_features: channels D of the features (b, D, h, w) or (b, D, 1, 1) that it is conditioned on; 0: none.
        options: the fields of `PixelSNAILOptions`.

    Raises `InputError` if an option is unknown or out of range, or the prior cannot learn such grids.

    Examples:
        >>> import torch
        >>> from codegrid import Grid
        >>> prior = PixelSNAIL((Grid((7, 7), 512),), num_classes=10, num_blocks=1)
        >>> codes, labels = torch.zeros(8, 7, 7, dtype=torch.int64), torch.arange(8)
        >>> (logits,) = prior.logits((codes,), Condition(labels))
        >>> logits.shape
        torch.Size([8, 512, 7, 7])
    """

    options: ClassVar[type] = PixelSNAILOptions
    called: ClassVar[str] = "the pixelsnail prior"
    network_class = PixelSNAILNetwork
    network: PixelSNAILNetwork

    def check_layout(self) -> None:
        """Raise `InputError` if this prior cannot learn its layout."""
        check_one_shape(self.layout, "pixelsnail")

    @property
    def bytes_per_sample(self) -> int:
        """Memory for the keys and values of one sample while it is drawn."""
        size = self.network.attention_layers()[0].start.element_size()
        wide = self.chosen.num_heads * self.chosen.head_channels
        return 2 * self.chosen.num_blocks * wide * self.layout[0].num_sites * size

    def forward(self, codes: Codes, given: Condition = NO_CONDITION, moment: Moment | None = None) -> Losses:
        """Return the loss, the mean nats per code, for codes (b, h, w); a moment drops features and hides labels."""
        dropout = 0.0 if moment is None else self.chosen.feature_dropout
        return mean_nats(
            self.network(codes, *self.condition_inputs(given, len(codes[0]), moment), dropout), codes, given.lengths
        )

    def steps(self, given: Condition, batch_size: int, backend: str = "auto") -> Steps:
        """Return the steps that compute logits code by code: cached, or by `logits` with the backend `plain`."""
        if choose_backend(backend, self) == "plain":
            return PlainSteps(self, given, batch_size, site_by_site(self.layout))
        conditioning = self.conditioning(given, batch_size).at_all_sites(self.layout[0].shape)
        return PixelSNAILSteps(self.network, self.layout, batch_size, conditioning)
