"""The next-scale prior: whole grids, from coarse to fine, each drawn at once.

Shapes: b batch, *shape the sites of a grid, K num_embeddings of a grid, D embedding_dim of the codes' vectors, p
convolutions φ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from codegrid.codes import Codes, Condition, Grid, Layout, Losses, Moment
from codegrid.drawn_priors import Steps
from codegrid.errors import InputError
from codegrid.limits import MAX_WIDTH, check_whole
from codegrid.protocols import NO_CONDITION, AdamSettings, Keeps
from codegrid.sampling_config import SamplingConfig
from codegrid.scales import Phi, Scales
from codegrid.stage2_prior.labelled import LabelledPrior
from codegrid.stage2_prior.likelihood import mean_nats
from codegrid.stage2_prior.options import NextScaleOptions
from codegrid.stage2_prior.sampling.backends import choose_backend
from codegrid.stage2_prior.sampling.sequential import PlainSteps
from codegrid.stage2_prior.transformer.layers import ADAM, KeyValueCache

from .network import NextScaleNetwork, NextScaleSteps, whole_grids


class NextScalePrior(LabelledPrior):
    """The prior of VAR: p(codes) = Π_k p(grid k | coarser grids, label), the codes of a grid at once.

    It sees coarser grids as the sum of the vectors that their codes stand for, which the tokenizer's quantizer adds up
    in the same way. So it needs these vectors, and keeps a copy of them.

    Args:
        layout: grids of any number of axes, from coarse to fine; as `Grid`s, or as their JSON values.
        grids: their indices in the tokenizer's layout; by default 0, 1, ...
        num_classes: labels are 0 ... num_classes-1; 0 makes an unconditional prior.
        tables: those of the codes, by name: `CodeDataset.tables()`. By default random vectors, and φ(x) = x.
        embedding_dim: D, if there are no tables.
        num_phi: p, if there are no tables.
        options: the fields of `NextScaleOptions`.

    Raises `InputError` if an option is unknown or out of range, the grids do not grow, or the tables are not theirs.

    Examples:
        >>> prior = NextScalePrior([Grid((side, side), 512) for side in (1, 2, 4, 7)], num_classes=10, num_layers=2)
        >>> codes = tuple(torch.zeros(8, *grid.shape, dtype=torch.int64) for grid in prior.layout)
        >>> [tuple(logits.shape) for logits in prior.logits(codes, Condition(torch.arange(8)))]
        [(8, 512, 1, 1), (8, 512, 2, 2), (8, 512, 4, 4), (8, 512, 7, 7)]
    """

    options: ClassVar[type] = NextScaleOptions
    called: ClassVar[str] = "the next-scale prior"
    keeps: ClassVar[Keeps] = "roughly"
    controls: ClassVar[frozenset[str]] = LabelledPrior.controls | {"guidance_schedule"}
    own_settings: ClassVar[SamplingConfig] = SamplingConfig(guidance_schedule="growing")
    adam: ClassVar[AdamSettings] = ADAM
    network: NextScaleNetwork

    def __init__(
        self,
        layout: Sequence[Grid | dict[str, Any]],
        grids: Sequence[int] | None = None,
        num_classes: int = 0,
        tables: Mapping[str, Tensor] | None = None,
        embedding_dim: int = 8,
        num_phi: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(layout, grids, num_classes, **options)
        check_growing(self.layout)
        if tables is None:
            scales = _some_scales(self.layout, embedding_dim, num_phi)
        else:
            own = {name: table.detach().to("cpu", torch.float32, copy=True) for name, table in tables.items()}
            scales = Scales.of_tables(own, self.layout)
        self.config |= {"embedding_dim": scales.entries[0].shape[1], "num_phi": len(scales.phi.bias)}
        self.network = NextScaleNetwork(self.layout, self.chosen, self.num_conditions, scales)

    @property
    def bytes_per_sample(self) -> int:
        """Memory for the keys and values of one sample while it is drawn."""
        size, sites = self.network.inward.weight.element_size(), sum(self.network.sizes)
        return KeyValueCache.bytes_per_sample(self.chosen.num_layers, sites, self.chosen.channels, size)

    def forward(self, codes: Codes, given: Condition = NO_CONDITION, moment: Moment | None = None) -> Losses:
        """Return the loss, the mean nats per code, for codes (b, *shape); a moment drops features and hides labels."""
        rows = self.condition_rows(given, len(codes[0]), moment)
        dropout = 0.0 if moment is None else self.chosen.feature_dropout
        return mean_nats(self.network(self.network.sums_of(codes), rows, dropout), codes, given.lengths)

    def logits(self, codes: Codes, given: Condition = NO_CONDITION) -> tuple[Tensor, ...]:
        """Return logits (b, K, *shape) of each grid for codes (b, *shape), each from coarser grids alone."""
        rows = self.condition_rows(given, len(codes[0]))
        logits: tuple[Tensor, ...] = self.network(self.network.sums_of(codes), rows)
        return logits

    def steps(self, given: Condition, batch_size: int, backend: str = "auto") -> Steps:
        """Return the steps that compute logits grid by grid: cached, or by `logits` with the backend `plain`."""
        if choose_backend(backend, self) == "plain":
            return PlainSteps(self, given, batch_size, whole_grids(self.network.sizes))
        return NextScaleSteps(self.network, self.condition_rows(given, batch_size), batch_size)

    @torch.no_grad()
    def fit(self, known: Codes, drawn: Codes) -> Tensor:
        """Return the codes (b, *shape) of the next grid with which a picture comes nearest to what known ones show.

        Known codes add detail to the coarser ones of their picture. Where others are drawn, other codes must be added.

        Args:
            known: the codes (b, *shape) of all grids.
            drawn: those (b, *shape) of the grids before the next one.
        """
        number = len(drawn)
        codes, scales = known[number], self.network.scales
        if not drawn:
            return codes
        missing = scales.so_far(known[:number]) - scales.so_far(drawn)
        entries = scales.entries[number]
        wanted = F.embedding(codes.flatten(1), entries) + missing.flatten(2).mT
        nearest = torch.stack([torch.cdist(of_sample, entries).argmin(1) for of_sample in wanted])
        return torch.where((missing == 0).all(1), codes, nearest.view_as(codes))


def check_growing(layout: Layout) -> None:
    """Raise `InputError` if grids do not have the same number of axes, or one is smaller than that before it."""
    shapes = [grid.shape for grid in layout]
    grows = [len(one) == len(other) and all(map(int.__le__, one, other)) for one, other in pairwise(shapes)]
    if not layout or not all(grows):
        words = ", ".join("×".join(map(str, shape)) for shape in shapes) or "no grid"
        raise InputError(f"`layout` of {words}: a next-scale prior learns grids that grow, as multiscale makes them")


def _some_scales(layout: Layout, embedding_dim: int, num_phi: int) -> Scales:
    """Return random vectors for codes, and φ that change nothing."""
    check_whole("embedding_dim", embedding_dim, 1, MAX_WIDTH)
    check_whole("num_phi", num_phi, 1, MAX_WIDTH)
    weight = torch.zeros(num_phi, embedding_dim, embedding_dim, 3, 3)
    weight[:, :, :, 1, 1] = torch.eye(embedding_dim)
    entries = [torch.randn(grid.num_embeddings, embedding_dim) for grid in layout]
    return Scales(entries, Phi(weight, torch.zeros(num_phi, embedding_dim)), [grid.shape for grid in layout])
