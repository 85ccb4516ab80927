"""The WaveNet (van den Oord et al. 2016, arXiv 1609.03499): dilated causal convolutions over a sequence of codes.

Shapes: b batch, r channels, s skip channels, C condition channels, L layers, N codes of all grids in the order of
drawing, *shape the sites of a grid, K its num_embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.codes import Codes, Condition, Layout, Losses, Moment, Sides
from codegrid.drawn_priors import Steps
from codegrid.errors import InputError
from codegrid.protocols import NO_CONDITION
from codegrid.stage2_prior.coarser import CoarserNetwork, Conditioning, enlarge
from codegrid.stage2_prior.labelled import GivenPrior
from codegrid.stage2_prior.likelihood import mean_nats
from codegrid.stage2_prior.options import WaveNetOptions
from codegrid.stage2_prior.sampling.backends import choose_backend
from codegrid.stage2_prior.sampling.sequential import PlainSteps, site_by_site

from .steps import WaveNetSteps


class Layer(nn.Module):
    """A gated layer: z = tanh(W_f ∗ h + V_f c) ⊙ σ(W_g ∗ h + V_g c); the next h is h + W_o z, and W_s z is summed up.

    W has two taps, `dilation` codes apart; V c comes from outside, for all layers at once.
    """

    def __init__(self, channels: int, skip_channels: int, dilation: int) -> None:
        super().__init__()
        self.channels, self.dilation = channels, dilation
        self.filter = nn.Conv1d(channels, 2 * channels, 2, dilation=dilation)
        self.out = nn.Conv1d(channels, channels + skip_channels, 1)

    def forward(self, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Turn h (b, r, N), given V c (b, 2r, N or 1), into the next h and what is summed up (b, s, N)."""
        kept, gate = (self.filter(F.pad(x, (self.dilation, 0))) + given).chunk(2, dim=1)
        more, skip = self.out(kept.tanh() * gate.sigmoid()).tensor_split([self.channels], dim=1)
        return x + more, skip


class WaveNetNetwork(nn.Module):
    """The network from codes to logits. A position holds the code before the one that it predicts; the first, a start.

    It knows no sites: a code is told apart by those before it, and by what is given.
    """

    def __init__(
        self,
        layout: Layout,
        options: WaveNetOptions,
        num_conditions: int,
        given_layout: Layout = (),
        given_features: int = 0,
    ) -> None:
        super().__init__()
        r, skips = options.channels, options.skip_channels
        dilations = [2**layer for layer in range(options.layers_per_cycle)] * options.num_cycles
        self.embeddings = nn.ModuleList(nn.Embedding(grid.num_embeddings, r) for grid in layout)
        self.start = nn.Parameter(torch.randn(r))
        self.layers = nn.ModuleList(Layer(r, skips, dilation) for dilation in dilations)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Conv1d(skips, skips, 1), nn.ReLU(), nn.Conv1d(skips, grid.num_embeddings, 1))
            for grid in layout
        )
        width = 2 * r * len(dilations)  # of what all layers are given
        self.condition = nn.Embedding(num_conditions, width) if num_conditions else None
        if self.condition is not None:
            nn.init.normal_(self.condition.weight, std=0.1)
        shape = layout[0].shape
        self.coarser = CoarserNetwork(given_layout, shape, options) if given_layout else None
        self.of_coarser = nn.Conv1d(options.condition_channels, width, 1, bias=False) if given_layout else None
        self.of_features = nn.Conv1d(given_features, width, 1, bias=False) if given_features else None

    def conditioning(self, conditions: Tensor | None, coarser: Codes, features: Tensor | None) -> Conditioning:
        """Return what is given: condition rows (b,), and coarser codes and features (b, C, *sites) as one map.

        The map is of the first grid, or of a single site that holds for all.
        """
        of_coarser = self.coarser(coarser) if self.coarser is not None else None
        parts = [part for part in (of_coarser, features) if part is not None]
        if len(parts) == 2:
            parts[1] = parts[1].expand(-1, -1, *parts[0].shape[2:])
        return Conditioning(conditions, torch.cat(parts, dim=1) if parts else None)

    def given_map(self, given: Conditioning, shapes: Sequence[Sides]) -> Tensor | None:
        """Return the map (b, C, N or 1) in the order of drawing; None if only labels are given, or nothing."""
        if given.site_map is None:
            return None
        if all(side == 1 for side in given.site_map.shape[2:]):
            return given.site_map.flatten(2)
        maps = [enlarge(given.site_map, shape).flatten(2) for shape in shapes]
        return torch.cat(maps, dim=2)[:, :, drawing_order(shapes).to(maps[0].device)]

    def of_layers(self, given: Conditioning, some: Tensor | None) -> Tensor:
        """Return V c of all layers, (b or 1, L · 2r, n or 1), for some positions (b, C, n) of the map."""
        total = self.start.new_zeros(1, 2 * self.start.numel() * len(self.layers), 1)
        if self.condition is not None:
            total = self.condition(given.rows)[..., None]
        if some is not None:
            of_coarser = 0 if self.of_coarser is None else self.of_coarser.in_channels
            parts = zip((self.of_coarser, self.of_features), some.tensor_split([of_coarser], dim=1), strict=True)
            for project, part in parts:
                total = total if project is None else total + project(part)
        return total

    def forward(
        self,
        codes: Codes,
        conditions: Tensor | None,
        coarser: Codes = (),
        features: Tensor | None = None,
        dropout: float = 0.0,
    ) -> tuple[Tensor, ...]:
        """Turn codes (b, *shape) into logits (b, K, *shape).

        Args:
            codes: of each grid.
            conditions: rows (b,) of the table of labels.
            coarser: codes (b, *shape) of the coarser grids.
            features: (b, D, *sites).
            dropout: the share of the embedded codes' features to drop.
        """
        shapes = [tuple(grid.shape[1:]) for grid in codes]
        order = drawing_order(shapes).to(codes[0].device)
        embedded = torch.cat([table(grid.flatten(1)) for table, grid in zip(self.embeddings, codes, strict=True)], 1)
        embedded = embedded[:, order[:-1]]
        x = torch.cat([self.start.expand(len(embedded), 1, -1), embedded], dim=1).mT
        x = F.dropout(x, dropout, training=dropout > 0)
        if torch.is_autocast_enabled(x.device.type):  # embeddings are not in its type, and sums would stay in theirs
            x = x.to(torch.get_autocast_dtype(x.device.type))
        given = self.conditioning(conditions, coarser, features)
        of_layers = self.of_layers(given, self.given_map(given, shapes)).to(x.dtype).chunk(len(self.layers), dim=1)
        total = x.new_zeros(())
        for layer, of_layer in zip(self.layers, of_layers, strict=True):
            x, skip = layer(x, of_layer)
            total = total + skip
        by_site = total[:, :, order.argsort()].split([grid[0].numel() for grid in codes], dim=2)
        return tuple(
            head(part).unflatten(2, shape) for head, part, shape in zip(self.heads, by_site, shapes, strict=True)
        )


class WaveNet(GivenPrior):
    """A WaveNet: p(codes) = Π p(z_i | z_<i, label, features), each from the codes in its receptive field.

    Its grids are read as one sequence: in raster order, all codes of a site before the next one, grids of different
    shapes one after the other. It sees `num_cycles` · (2^`layers_per_cycle` − 1) + 1 codes back.

    Args:
        layout: grids of any shapes, coarse to fine; as `Grid`s, or as their JSON values.
        grids: their indices in the tokenizer's layout; by default 0, 1, ...
        num_classes: labels are 0 ... num_classes-1; 0 makes an unconditional prior.
        given_grids: numbers of the coarser grids that it is conditioned on.
        given_layout: these grids (h, w), of any sizes, coarse to fine; its own grids must be (h, w), too.
        given_features: channels D of the features (b, D, *sites) or (b, D, 1, ...) that it is conditioned on; 0: none.
        options: the fields of `WaveNetOptions`.

    Raises `InputError` if an option is unknown or out of range, or the prior cannot learn such grids.

    Examples:
        >>> from codegrid import Grid
        >>> prior = WaveNet((Grid((40,), 256),), num_classes=2, channels=8, layers_per_cycle=4)
        >>> (logits,) = prior.logits((torch.zeros(3, 40, dtype=torch.int64),), Condition(torch.tensor([0, 1, 0])))
        >>> logits.shape
        torch.Size([3, 256, 40])
    """

    options: ClassVar[type] = WaveNetOptions
    called: ClassVar[str] = "the wavenet prior"
    network_class = WaveNetNetwork
    network: WaveNetNetwork

    def check_layout(self) -> None:
        """Raise `InputError` if there is no grid."""
        if not self.layout:
            raise InputError("`layout` of no grid: a wavenet prior learns at least one")

    def forward(self, codes: Codes, given: Condition = NO_CONDITION, moment: Moment | None = None) -> Losses:
        """Return the loss, the mean nats per code, for codes (b, *shape); a moment drops features and hides labels."""
        dropout = 0.0 if moment is None else self.chosen.feature_dropout
        return mean_nats(
            self.network(codes, *self.condition_inputs(given, len(codes[0]), moment), dropout), codes, given.lengths
        )

    def steps(self, given: Condition, batch_size: int, backend: str = "auto") -> Steps:
        """Return the steps that compute logits code by code: with queues, or by `logits` with the backend `plain`."""
        if choose_backend(backend, self) == "plain":
            return PlainSteps(self, given, batch_size, site_by_site(self.layout))
        return WaveNetSteps(self.network, self.layout, batch_size, self.conditioning(given, batch_size))


def drawing_order(shapes: Sequence[Sides]) -> Tensor:
    """Return the places (N,) of codes, in the order of drawing, in all grids one after the other."""
    order, first = [], 0
    for shape, group in groupby(shapes):
        count, sites = len(list(group)), torch.Size(shape).numel()
        order.append(torch.arange(first, first + count * sites).view(count, sites).T.flatten())
        first += count * sites
    return torch.cat(order)
