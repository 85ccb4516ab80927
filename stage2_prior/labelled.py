"""Base classes for priors over classes that can also be asked without a label, as guidance requires.

Shapes: b batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from codegrid.codes import Codes, Condition, Grid, Moment
from codegrid.noise import Noise
from codegrid.protocols import NO_CONDITION
from codegrid.tensors import Rows

from .coarser import Conditioning
from .grid_prior import GridPrior
from .sequential_prior import SequentialPrior


class HidesLabels(GridPrior):
    """Base class of a prior that hides a share of the labels in training, its option `label_dropout`.

    A subclass computes in a module `network`, in which modules called `condition_table` are tables of embeddings with a
    row for each of `num_conditions`. The arguments are those of `GridPrior`.
    """

    condition_table: ClassVar[str] = "condition"
    network: Any

    def __init__(
        self,
        layout: Sequence[Grid | dict[str, Any]],
        grids: Sequence[int] | None = None,
        num_classes: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(layout, grids, num_classes, **options)
        self.label_dropout = self.config["label_dropout"] = self.chosen.label_dropout if num_classes else 0.0

    @property
    def num_conditions(self) -> int:
        """The number of classes, and one more, the last, if labels may be hidden."""
        return self.num_classes + (self.label_dropout > 0)

    def condition_rows(self, given: Condition, batch_size: int, moment: Moment | None = None) -> Tensor | None:
        """Return the row (b,) of each sample in tables of conditions, None without classes; a moment hides some labels.

        Raises `InputError` if this prior was not trained with such a condition.
        """
        rows = self.conditions.rows(given, batch_size, self.device, self.takes)
        if moment is None or rows is None or not self.label_dropout:
            return rows
        return rows.masked_fill(self._hidden_labels(moment.noise).to(rows.device), self.num_classes)

    def _hidden_labels(self, noise: Noise) -> Tensor:
        """Return which labels (b,) training hides. Half of them, if there are texts, are hidden with their texts.

        So it learns what guidance needs, which hides both, as well as labels alone and texts alone.
        """
        if not self.num_words:
            return noise.uniforms("label dropout") < self.label_dropout
        of_texts = noise.uniforms("caption dropout")  # hidden below `caption_dropout`
        return (of_texts + self.label_dropout / 2) % 1 < self.label_dropout

    def condition_inputs(self, given: Condition, batch_size: int, moment: Moment | None = None) -> tuple[Any, ...]:
        """Return the row of each sample in tables of conditions, and the coarser codes; a moment hides some of both."""
        return self.condition_rows(given, batch_size, moment), self.coarser_codes(given, batch_size, moment)

    def shared_rows(self, other: HidesLabels) -> dict[str, Rows]:
        """Return which rows of the tables of conditions stand for a class of the same name."""
        ours, theirs = self.conditions.rows_by_name, other.conditions.rows_by_name
        shared = [name for name in ours if name in theirs]
        rows = [ours[name] for name in shared], [theirs[name] for name in shared]
        tables = [name for name, module in self.named_modules() if isinstance(module, nn.Embedding)]
        return {f"{name}.weight": rows for name in tables if name.endswith(f".{self.condition_table}")}

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network only: checks and random numbers would break the graph."""
        self.network.compile(*args, **kwargs)


class LabelledPrior(HidesLabels, SequentialPrior):
    """Base class of a sequential prior that hides labels in training.

    The method `conditioning` of its `network` makes a `Conditioning` of `condition_inputs`.
    """

    controls: ClassVar[frozenset[str]] = SequentialPrior.controls | {"guidance_scale"}

    @torch.no_grad()
    def conditioning(self, given: Condition, batch_size: int) -> Conditioning:
        """Return what layers add under a condition, computed once for all sites."""
        made: Conditioning = self.network.conditioning(*self.condition_inputs(given, batch_size))
        return made


class GivenPrior(LabelledPrior):
    """Base class of a prior that can also be conditioned on coarser grids and on features.

    A subclass names the class of its network as `network_class`: built from the layout, the options, `num_conditions`,
    the layout of the coarser grids, and the channels of the features; or it has a `make_network` of its own. The
    network is called with codes and `condition_inputs`.

    Args:
        layout: grids that `check_layout` accepts, as `Grid`s or as their JSON values.
        grids: their indices in the tokenizer's layout; by default 0, 1, ...
        num_classes: labels are 0 ... num_classes-1; 0 makes an unconditional prior.
        given_grids: numbers of the coarser grids that it is conditioned on.
        given_layout: these grids, coarse to fine.
        given_features: channels D of the features (b, D, *sites) that it is conditioned on; 0: none.
        options: the fields of `options`.
    """

    network_class: ClassVar[type[nn.Module]]

    def __init__(
        self,
        layout: Sequence[Grid | dict[str, Any]],
        grids: Sequence[int] | None = None,
        num_classes: int = 0,
        given_grids: Sequence[int] = (),
        given_layout: Sequence[Grid | dict[str, Any]] = (),
        given_features: int = 0,
        **options: Any,
    ) -> None:
        given_too = {"given_grids": given_grids, "given_layout": given_layout, "given_features": given_features}
        super().__init__(layout, grids, num_classes, **given_too, **options)
        self.check_layout()
        self.network = self.make_network()

    def make_network(self) -> nn.Module:
        """Return a new network of this prior's sizes."""
        given_too = self.given_layout, self.given_features
        return self.network_class(self.layout, self.chosen, self.num_conditions, *given_too)

    def check_layout(self) -> None:
        """Raise `InputError` if this prior cannot learn its layout."""

    def logits(self, codes: Codes, given: Condition = NO_CONDITION) -> tuple[Tensor, ...]:
        """Return logits (b, K, *shape) of each grid for codes (b, *shape), each from the codes before it alone."""
        logits: tuple[Tensor, ...] = self.network(codes, *self.condition_inputs(given, len(codes[0])))
        return logits

    def condition_inputs(self, given: Condition, batch_size: int, moment: Moment | None = None) -> tuple[Any, ...]:
        """Return the row of each sample in tables of conditions, the coarser codes, and the features (b, D, *sites)."""
        features = self.features(given, batch_size) if self.given_features else None
        return (*super().condition_inputs(given, batch_size, moment), features)
