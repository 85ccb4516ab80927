"""A causal transformer over grids of codes, of the kind of LlamaGen (Sun et al. 2024, arXiv 2406.06525).

Shapes: b batch, d channels, N codes of all grids in the order of drawing, *shape the sites of a grid, K its
num_embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.codes import Codes, Condition, Grid, Layout, Losses, Moment, describe_layout
from codegrid.drawn_priors import Steps
from codegrid.errors import InputError
from codegrid.protocols import NO_CONDITION, AdamSettings
from codegrid.stage2_prior.coarser import CoarserNetwork, Conditioning, enlarge
from codegrid.stage2_prior.labelled import GivenPrior
from codegrid.stage2_prior.likelihood import mean_nats
from codegrid.stage2_prior.options import TransformerOptions
from codegrid.stage2_prior.sampling.backends import choose_backend
from codegrid.stage2_prior.sampling.sequential import PlainSteps, site_by_site

from .cache import TransformerSteps
from .layers import (
    ADAM,
    HIDING,
    SPREAD,
    Block,
    KeyValueCache,
    Positions,
    initialise,
)
from .rotations import rotation_at, site_coordinates
from .words import WordEncoder


class TransformerNetwork(nn.Module):
    """The network from codes to logits: the part to use `torch.compile` on.

    A position holds the code before the one that it predicts; the first one holds the label, or a learnt start. So it
    stands at two sites: its keys are turned by the site of the code that it holds, and its queries by that of the code
    that it predicts, whose learnt position, and map of coarser grids, are added to its features.
    """

    block_class: ClassVar[type[Block]] = Block

    def __init__(
        self,
        layout: Layout,
        options: TransformerOptions,
        num_conditions: int,
        given_layout: Layout = (),
        given_features: int = 0,
        num_words: int = 0,
        text_length: int = 0,
    ) -> None:
        super().__init__()
        channels, heads, shape = options.channels, options.num_heads, layout[0].shape
        self.layout, self.head_width = layout, channels // heads
        # numbers of the grids of each shape: those of one shape are drawn together, site by site
        numbers = groupby(range(len(layout)), key=lambda number: layout[number].shape)
        self.groups = [list(group) for _, group in numbers]
        self.condition = nn.Embedding(num_conditions, channels) if num_conditions else None
        self.start = None if num_conditions else nn.Parameter(torch.randn(channels) * SPREAD)
        self.embeddings = nn.ModuleList(nn.Embedding(grid.num_embeddings, channels) for grid in layout)
        self.positions = nn.ModuleList(self.make_positions(grid, channels) for grid in layout)
        self.blocks = nn.ModuleList(
            self.block_class(channels, heads, after_words=num_words > 0) for _ in range(options.num_layers)
        )
        norm = self.block_class.norm_class
        self.heads = nn.ModuleList(
            nn.Sequential(norm(channels), nn.Linear(channels, grid.num_embeddings)) for grid in layout
        )
        initialise(self, options.num_layers)
        for head in self.heads:
            nn.init.zeros_(head[1].weight)  # type: ignore[index]
        self.coarser = CoarserNetwork(given_layout, shape, options) if given_layout else None
        self.of_coarser = nn.Linear(options.condition_channels, channels, bias=False) if given_layout else None
        self.of_features = nn.Linear(given_features, channels) if given_features else None
        self.words = None
        self.cached_width = self.head_width + (HIDING if num_words else 0)
        if num_words:
            self.words = WordEncoder(num_words, text_length, channels, heads, options.text_layers)
            initialise(self.words, options.text_layers)

    def make_positions(self, grid: Grid, channels: int) -> nn.Module:
        """Return a module without inputs that makes the vectors (n, d) of the sites of a grid."""
        return Positions(grid.shape, channels)

    def conditioning(
        self,
        conditions: Tensor | None,
        coarser: Codes,
        features: Tensor | None,
        words: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Conditioning:
        """Return what is given: condition rows (b,), coarser codes and features (b, D, *sites) as one map, and texts.

        The map (b, d, *sites) is of the first grid, or of a single site that holds for all.
        """
        parts = []
        if self.coarser is not None and self.of_coarser is not None:
            parts.append(self.of_coarser(self.coarser(coarser).movedim(1, -1)).movedim(-1, 1))
        if self.of_features is not None and features is not None:
            parts.append(self.of_features(features.movedim(1, -1)).movedim(-1, 1))
        encoded = None if self.words is None else self.words(words, dropout)
        return Conditioning(conditions, sum(parts[1:], parts[0]) if parts else None, encoded)

    def first(self, conditions: Tensor | None, batch_size: int) -> Tensor:
        """Return the features (b, 1, d) of the first position, without those of its site."""
        if self.condition is not None:
            of_labels: Tensor = self.condition(conditions)[:, None]
            return of_labels
        assert self.start is not None
        return self.start.expand(batch_size, 1, -1)

    def at_sites(self, given: Conditioning) -> Tensor:
        """Return what is added at each position for the site of the code that it predicts: (b or 1, N, d)."""
        parts = [positions()[None] for positions in self.positions]
        if given.site_map is not None:
            maps = (enlarge(given.site_map, grid.shape).flatten(2).mT for grid in self.layout)
            parts = [part + of_grid for part, of_grid in zip(parts, maps, strict=True)]
        return self._in_order(parts)

    def rotations(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the rotations of the queries and of the keys, (2, N, d_h/2) each, of the type of `like`; or none."""
        finest = tuple(map(max, zip(*(grid.shape for grid in self.layout), strict=True)))
        sites = [site_coordinates(grid.shape, finest, like.device)[None] for grid in self.layout]
        predicted = self._in_order(sites)[0]
        held = torch.cat([torch.zeros_like(predicted[:1]), predicted[:-1]])
        return rotation_at(predicted, self.head_width, like), rotation_at(held, self.head_width, like)

    def forward(
        self,
        codes: Codes,
        conditions: Tensor | None,
        coarser: Codes = (),
        features: Tensor | None = None,
        words: Tensor | None = None,
        dropout: float = 0.0,
    ) -> tuple[Tensor, ...]:
        """Turn codes (b, *shape) into logits (b, K, *shape).

        Args:
            codes: of each grid.
            conditions: rows (b,) of the table of labels.
            coarser: codes (b, *shape) of the coarser grids.
            features: (b, D, *sites).
            words: of texts (b, t).
            dropout: the share of the features to drop.
        """
        given = self.conditioning(conditions, coarser, features, words, dropout)
        pairs = zip(self.embeddings, codes, strict=True)
        embedded = self._in_order([table(grid.flatten(1)) for table, grid in pairs])
        x = torch.cat([self.first(given.rows, len(embedded)), embedded[:, :-1]], dim=1)
        x = F.dropout(x, dropout, training=dropout > 0) + self.at_sites(given)
        if torch.is_autocast_enabled(x.device.type):  # embeddings are not in its type, and sums would stay in theirs
            x = x.to(torch.get_autocast_dtype(x.device.type))
        turned = self.rotations(x)
        for block in self.blocks:
            x = block(x, turned, causal=True, dropout=dropout, words=given.words)
        return tuple(
            head(part).mT.unflatten(2, grid.shape)
            for head, part, grid in zip(self.heads, self._by_grid(x), self.layout, strict=True)
        )

    def _in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """Rearrange vectors (b, n, d) of the sites of each grid in the order of drawing: (b, N, d)."""
        groups = [torch.stack([parts[number] for number in group], dim=2) for group in self.groups]
        return torch.cat([group.flatten(1, 2) for group in groups], dim=1)

    def _by_grid(self, x: Tensor) -> list[Tensor]:
        """Return the vectors (b, n, d) of the sites of each grid, of those in the order of drawing (b, N, d)."""
        sizes = [len(group) * self.layout[group[0]].num_sites for group in self.groups]
        pairs = zip(self.groups, x.split(sizes, dim=1), strict=True)
        return [part for group, parts in pairs for part in parts.unflatten(1, (-1, len(group))).unbind(2)]


class CausalTransformer(GivenPrior):
    """A causal transformer: p(codes) = Π p(z_i | z_<i, label or text, coarser grids).

    Grids of one shape are drawn site by site in raster order, all codes of a site before the next one; grids of
    different shapes one after the other, each seeing all codes of those before it. A text stands in front of all codes,
    its words as they see each other.

    Args:
        layout: grids of any shapes with the same number of axes, coarse to fine; as `Grid`s, or as their JSON values.
        grids: their indices in the tokenizer's layout; by default 0, 1, ...
        num_classes: labels are 0 ... num_classes-1; 0 makes an unconditional prior.
        given_grids: numbers of the coarser grids that it is conditioned on.
        given_layout: these grids (h, w), of any sizes, coarse to fine; its own grids must be (h, w), too.
        given_features: channels D of the features (b, D, *sites) or (b, D, 1, ...) that it is conditioned on; 0: none.
        num_words: the size of the vocabulary of texts; 0: it is not conditioned on texts.
        text_length: the most words of a text.
        options: the fields of `TransformerOptions`.

    Raises `InputError` if an option is unknown or out of range, or the prior cannot learn such grids.

    Examples:
        >>> from codegrid import Grid
        >>> prior = CausalTransformer((Grid((4, 4), 32), Grid((8, 8), 512)), num_classes=10, num_layers=2)
        >>> codes = torch.zeros(3, 4, 4, dtype=torch.int64), torch.zeros(3, 8, 8, dtype=torch.int64)
        >>> [tuple(logits.shape) for logits in prior.logits(codes, Condition(torch.tensor([0, 1, 2])))]
        [(3, 32, 4, 4), (3, 512, 8, 8)]
    """

    options: ClassVar[type] = TransformerOptions
    called: ClassVar[str] = "the transformer prior"
    can_compile: ClassVar[bool] = True
    adam: ClassVar[AdamSettings] = ADAM
    network_class: ClassVar[type[TransformerNetwork]] = TransformerNetwork
    network: TransformerNetwork

    def __init__(
        self,
        layout: Sequence[Grid | dict[str, Any]],
        grids: Sequence[int] | None = None,
        num_classes: int = 0,
        given_grids: Sequence[int] = (),
        given_layout: Sequence[Grid | dict[str, Any]] = (),
        given_features: int = 0,
        num_words: int = 0,
        text_length: int = 0,
        **options: Any,
    ) -> None:
        texts = {"num_words": num_words, "text_length": text_length}
        super().__init__(layout, grids, num_classes, given_grids, given_layout, given_features, **texts, **options)

    def make_network(self) -> TransformerNetwork:
        """Return a new network of this prior's sizes."""
        given_too = self.given_layout, self.given_features, self.num_words, self.text_length
        return self.network_class(self.layout, self.chosen, self.num_conditions, *given_too)

    def check_layout(self) -> None:
        """Raise `InputError` if this prior cannot learn its layout."""
        if len({len(grid.shape) for grid in self.layout}) != 1:
            words = describe_layout(self.layout) if self.layout else "no grid"
            what = self.called.removeprefix("the ")
            raise InputError(f"`layout` of {words}: a {what} learns grids with the same number of axes")

    @property
    def bytes_per_sample(self) -> int:
        """Memory for the keys and values of one sample while it is drawn."""
        positions = self.text_length + sum(grid.num_sites for grid in self.layout)
        size = self.network.embeddings[0].weight.element_size()  # type: ignore[operator]
        width = self.chosen.num_heads * self.network.cached_width
        return KeyValueCache.bytes_per_sample(self.chosen.num_layers, positions, width, size)

    def condition_inputs(self, given: Condition, batch_size: int, moment: Moment | None = None) -> tuple[Any, ...]:
        """Return the inputs of the network besides codes; the last are the words (b, text_length) of texts, if any."""
        return *super().condition_inputs(given, batch_size, moment), self.texts(given, batch_size, moment)

    def forward(self, codes: Codes, given: Condition = NO_CONDITION, moment: Moment | None = None) -> Losses:
        """Return the loss, the mean nats per code, for codes (b, *shape); a moment drops features and hides labels."""
        dropout = 0.0 if moment is None else self.chosen.feature_dropout
        return mean_nats(
            self.network(codes, *self.condition_inputs(given, len(codes[0]), moment), dropout), codes, given.lengths
        )

    def steps(self, given: Condition, batch_size: int, backend: str = "auto") -> Steps:
        """Return the steps that compute logits code by code: cached, or by `logits` with the backend `plain`."""
        backend = choose_backend(backend, self)
        if backend == "plain":
            return PlainSteps(self, given, batch_size, site_by_site(self.layout))
        return TransformerSteps(self.network, batch_size, self.conditioning(given, batch_size), backend == "compiled")
