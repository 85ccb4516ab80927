"""MaskGIT (Chang et al. 2022, arXiv 2202.04200): a transformer that guesses hidden codes from all the others.

Shapes: b batch, n sites of a grid, s sites of all grids, t words of a text, d channels, K num_embeddings, *shape the
sites of a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.codes import HIDDEN, Codes, Condition, Grid, Known, Layout, Losses, Moment, Progress
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.protocols import NO_CONDITION, AdamSettings, Keeps, Likelihood
from codegrid.sampling_config import SamplingConfig, check_steps
from codegrid.stage2_prior.labelled import HidesLabels
from codegrid.stage2_prior.masked_likelihood import random_order_nats
from codegrid.stage2_prior.options import MaskGITOptions
from codegrid.stage2_prior.pixelcnn.kept import Kept
from codegrid.stage2_prior.sampling.masked import first_hidden, hide, sample_masked
from codegrid.stage2_prior.sampling.schedules import masked_share
from codegrid.stage2_prior.transformer.layers import ADAM, Block, Positions, RMSNorm, initialise
from codegrid.stage2_prior.transformer.words import CrossAttention, WordEncoder


class MaskGITNetwork(nn.Module):
    """A transformer in which every site sees every other one, those of coarser grids, and the words of a text.

    Args:
        layout: the grids to guess.
        given_layout: the coarser grids that it is given.
        num_conditions: the rows of the table of labels; 0: none.
        options: the sizes.
        num_words, text_length: the sizes of the vocabulary and of texts; 0: none.
    """

    def __init__(
        self,
        layout: Layout,
        given_layout: Layout,
        num_conditions: int,
        options: MaskGITOptions,
        num_words: int = 0,
        text_length: int = 0,
    ) -> None:
        super().__init__()
        width = options.channels
        self.sizes = [grid.num_sites for grid in layout]
        # row 0 stands for a hidden code, row k + 1 for code k: so a larger codebook adds rows at the end
        self.tables = nn.ModuleList(nn.Embedding(grid.num_embeddings + 1, width) for grid in (*given_layout, *layout))
        self.positions = nn.ModuleList(Positions(grid.shape, width) for grid in (*given_layout, *layout))
        self.condition = nn.Embedding(num_conditions, width) if num_conditions else None
        self.blocks = nn.ModuleList(Block(width, options.num_heads, normalise=True) for _ in range(options.num_layers))
        self.heads = nn.ModuleList(
            nn.Sequential(RMSNorm(width), nn.Linear(width, grid.num_embeddings)) for grid in layout
        )
        initialise(self, options.num_layers)
        self.words, self.crossings = None, nn.ModuleList()
        if num_words:
            sizes = width, options.num_heads
            self.words = WordEncoder(num_words, text_length, *sizes, options.text_layers)
            self.crossings = nn.ModuleList(CrossAttention(*sizes) for _ in range(options.num_layers))
            initialise(self.words, options.text_layers)
            initialise(self.crossings, options.num_layers)

    def forward(
        self,
        codes: Codes,
        conditions: Tensor | None,
        coarser: Codes = (),
        words: Tensor | None = None,
        dropout: float = 0.0,
    ) -> tuple[Tensor, ...]:
        """Turn codes (b, *shape), HIDDEN where they are to be guessed, into logits (b, n, K) of all of them.

        Args:
            codes: of each grid.
            conditions: rows (b,) of the table of labels.
            coarser: codes (b, *shape) of the coarser grids.
            words: of texts (b, t).
            dropout: the share of the features to drop.
        """
        parts = []
        for table, position, grid in zip(self.tables, self.positions, (*coarser, *codes), strict=True):
            parts.append(table(grid.flatten(1) - HIDDEN) + position(tuple(grid.shape[1:])))
        x = torch.cat(parts, dim=1)
        if self.condition is not None:
            x = x + self.condition(conditions)[:, None]
        if torch.is_autocast_enabled(x.device.type):  # embeddings are not in its type, and sums would stay in theirs
            x = x.to(torch.get_autocast_dtype(x.device.type))
        x = F.dropout(x, dropout, training=dropout > 0)
        of_text = None if self.words is None else self.words(words, dropout)
        for block, crossing in zip_longest(self.blocks, self.crossings):
            if crossing is not None:
                x = crossing(x, of_text, dropout)
            x = block(x, dropout=dropout)
        features = x.split([part.shape[1] for part in parts], dim=1)[len(coarser) :]
        return tuple(head(of_grid) for head, of_grid in zip(self.heads, features, strict=True))


class MaskGIT(HidesLabels):
    """A MaskGIT: p(hidden codes | all others, label or text, coarser grids), drawn in a few steps of many sites each.

    Args:
        layout: grids of any shapes, as `Grid`s or as their JSON values.
        grids: their indices in the tokenizer's layout; by default 0, 1, ...
        num_classes: labels are 0 ... num_classes-1; 0 makes an unconditional prior.
        given_grids: numbers of the coarser grids that it is conditioned on.
        given_layout: these grids, coarse to fine.
        num_words: the size of the vocabulary of texts; 0: it is not conditioned on texts.
        text_length: the most words of a text.
        options: the fields of `MaskGITOptions`.

    Raises `InputError` if an option is unknown or out of range, or the prior cannot learn such grids.

    Examples:
        >>> from codegrid.stage2_prior import sample
        >>> prior = MaskGIT((Grid((7, 7), 512),), num_classes=10, num_layers=1).eval()
        >>> (codes,) = sample(prior, 4, labels=[3], num_inference_steps=4, guidance_scale=2.0)
        >>> codes.shape
        torch.Size([4, 7, 7])
    """

    options: ClassVar[type] = MaskGITOptions
    called: ClassVar[str] = "the maskgit prior"
    likelihood: ClassVar[Likelihood] = "bound"
    keeps: ClassVar[Keeps] = "any"
    controls: ClassVar[frozenset[str]] = frozenset(vars(SamplingConfig())) - {"solver"}
    can_compile: ClassVar[bool] = True
    adam: ClassVar[AdamSettings] = ADAM
    network: MaskGITNetwork

    def __init__(
        self,
        layout: Sequence[Grid | dict[str, Any]],
        grids: Sequence[int] | None = None,
        num_classes: int = 0,
        given_grids: Sequence[int] = (),
        given_layout: Sequence[Grid | dict[str, Any]] = (),
        num_words: int = 0,
        text_length: int = 0,
        **options: Any,
    ) -> None:
        given_too = {"given_grids": given_grids, "given_layout": given_layout}
        texts = {"num_words": num_words, "text_length": text_length}
        super().__init__(layout, grids, num_classes, **given_too, **texts, **options)
        if not self.layout:
            raise InputError("`layout` of no grid: a maskgit prior learns at least one")
        self.network = MaskGITNetwork(
            self.layout, self.given_layout, self.num_conditions, self.chosen, num_words, text_length
        )
        self._compiled = Kept()

    @property
    def max_inference_steps(self) -> int:
        """The number of sites of all grids."""
        return sum(grid.num_sites for grid in self.layout)

    @property
    def own_settings(self) -> SamplingConfig:
        """How it draws unless told otherwise: the options that are fields of `SamplingConfig`."""
        return SamplingConfig(
            guidance_schedule=self.chosen.guidance_schedule,
            num_inference_steps=min(self.chosen.num_inference_steps, self.max_inference_steps),
            choice_temperature=self.chosen.choice_temperature,
            unmask_order=self.chosen.unmask_order,
            mask_schedule=self.chosen.mask_schedule,
        )

    def condition_inputs(self, given: Condition, batch_size: int, moment: Moment | None = None) -> tuple[Any, ...]:
        """Return the inputs of the network besides codes; the last are the words (b, text_length) of texts, if any."""
        return *super().condition_inputs(given, batch_size, moment), self.texts(given, batch_size, moment)

    def forward(self, codes: Codes, given: Condition = NO_CONDITION, moment: Moment | None = None) -> Losses:
        """Return the loss, the mean over samples of the mean nats of their hidden codes, for codes (b, *shape).

        As many codes are hidden, at random, as there may be at any time of a drawing. A moment also drops features and
        hides labels and coarser codes; without one, the hidden codes are always the same ones.
        """
        count = len(codes[0])
        noise = Noise(0, 0, count) if moment is None else moment.noise
        hidden = self.training_masks(noise, count)
        inputs = self.condition_inputs(given, count, moment)
        sizes = self.network.sizes
        shown = tuple(~part.view_as(grid) for part, grid in zip(hidden.split(sizes, dim=1), codes, strict=True))
        logits = self.network(hide(codes, shown), *inputs, 0.0 if moment is None else self.chosen.feature_dropout)
        smoothing = 0.0 if moment is None else self.chosen.label_smoothing
        losses = [
            F.cross_entropy(of_grid.flatten(0, 1).float(), grid.flatten(), reduction="none", label_smoothing=smoothing)
            for of_grid, grid in zip(logits, codes, strict=True)
        ]
        nats = torch.cat([of_grid.view(count, -1) for of_grid in losses], dim=1)
        weights = torch.ones_like(nats) if self.chosen.learns_shown else hidden.to(nats)
        return Losses({"nll": ((nats * weights).sum(1) / weights.sum(1)).mean()}, {})

    def training_masks(self, noise: Noise, count: int) -> Tensor:
        """Return which codes (b, s) training hides: at least one, and in a share of the samples all of them."""
        sites = self.max_inference_steps
        share = masked_share(self.chosen.mask_schedule, noise.uniforms("hidden share"))
        sizes = (share * sites).ceil().clamp(1, sites).to(self.device)
        everywhere = torch.ones(count, sites, dtype=torch.bool, device=self.device)
        return first_hidden(noise.uniforms("hidden sites", sites).to(self.device), everywhere, sizes)

    def hidden_logits(
        self, codes: Codes, given: Condition = NO_CONDITION, backend: str = "plain"
    ) -> tuple[Tensor, ...]:
        """Return the logits (b, n, K) of each grid for codes (b, *shape), HIDDEN where they are to be guessed."""
        network: Callable[..., tuple[Tensor, ...]] = self.network
        if backend == "compiled":
            network = self._compile()
        return network(codes, *self.condition_inputs(given, len(codes[0])))

    def _compile(self) -> Callable[..., tuple[Tensor, ...]]:
        """Return the compiled network, which computes a batch size faster once it has met it."""
        weights = self._compiled.check(self.network.parameters())
        compiled = self._compiled.take("network")
        if compiled is None:
            mode = "reduce-overhead" if self.device.type == "cuda" else None
            compiled = torch.compile(self.network.forward, dynamic=False, mode=mode)
        self._compiled.put("network", compiled, weights)
        return cast(Callable[..., tuple[Tensor, ...]], compiled)

    @torch.no_grad()
    def nll(
        self,
        codes: Codes,
        given: Condition = NO_CONDITION,
        noise: Noise | None = None,
        num_inference_steps: int | None = None,
    ) -> tuple[Tensor, ...]:
        """Return nats (b, *shape) whose sum over all sites is an unbiased estimate of a bound on −log p(codes).

        The bound is that of drawing in a random order: see `random_order_nats`. The number of steps is by default the
        prior's own; with as many as there are sites, the bound is the lowest, and does not depend on the schedule.

        Raises `InputError` if there are more steps than sites.
        """
        check_steps(num_inference_steps, self)
        noise = Noise(0, 0, len(codes[0])) if noise is None else noise
        steps = num_inference_steps or self.own_settings.num_inference_steps
        assert steps is not None
        return random_order_nats(self, codes, given, noise, steps, self.chosen.mask_schedule)

    def sample(
        self,
        given: Condition,
        noise: Noise,
        config: SamplingConfig,
        known: Known | None = None,
        backend: str = "auto",
        watch: bool = False,
    ) -> Iterator[Progress]:
        """Draw `noise.count` samples in a few steps; see `sample_masked`."""
        return sample_masked(self, given, noise, config, known, backend, watch)
