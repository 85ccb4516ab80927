"""One quantizer for each level of a hierarchy of latents.

Shapes: b batch, D embedding_dim of a level, *sites its latents, *shape the sites of a grid, K num_embeddings.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from codegrid.codes import Layout, Sides
from codegrid.errors import InputError
from codegrid.registry import TABLES, Chosen, resolve_chosen


class LevelQuantizers(nn.ModuleList):
    """Quantizers of several levels, coarse to fine. The codes are in the grids of all levels, one after the other.

    Latents of a finer level depend on the codes of the coarser ones, so each level is quantized by itself: by an item
    of this list.

    Args:
        names: of the quantizers, in `QUANTIZERS`.
        options: for all quantizers; each gets those that it has.
        num_embeddings: K of each; by default that of `options`, or their own.

    Raises `InputError` if no quantizer has an option, a value is out of range, or K is given for a quantizer that has
    no `num_embeddings`.
    """

    def __init__(
        self, names: Sequence[str], options: dict[str, Any], num_embeddings: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self._given: list[dict[str, Any]] = []
        for level, name in enumerate(names):
            has, _ = resolve_chosen([Chosen("level_quantizers", "quantizer", name)], options)
            own = {option: value for option, value in options.items() if option in has}
            if num_embeddings is not None:
                if "num_embeddings" not in has:
                    words = f"the quantizer of level {level}, {name}, has no number of entries: leave it out"
                    raise InputError(f"`level_embeddings` {' '.join(map(str, num_embeddings))}: {words}")
                own["num_embeddings"] = num_embeddings[level]
            self.append(TABLES["quantizer"][name](**own))
            self._given.append(own)
        for option in options:
            if not any(option in own for own in self._given):
                raise InputError(f"`{option}`: no such option has {' or '.join(dict.fromkeys(names))}: leave it out")
        self._counts: list[int] = []

    def each(self) -> list[Any]:
        """Return the quantizers, coarse to fine."""
        return list(self)

    @property
    def config(self) -> dict[str, Any]:
        """Options on which all quantizers that have them agree: the others follow from those of the levels."""
        configs = [getattr(level, "config", given) for level, given in zip(self.each(), self._given, strict=True)]
        found: dict[str, list[Any]] = {}
        for name, value in (item for config in configs for item in config.items()):
            found.setdefault(name, []).append(value)
        return {name: values[0] for name, values in found.items() if all(value == values[0] for value in values)}

    def layout(self, sites: Sequence[Sides]) -> Layout:
        """Return the grids of latents with these sites, for each level. The first call is for those of training."""
        layouts = [level.layout(of_level) for level, of_level in zip(self.each(), sites, strict=True)]
        self._counts = [len(layout) for layout in layouts]
        return tuple(grid for layout in layouts for grid in layout)

    def entries(self, grid: int) -> torch.Tensor | None:
        """Return the vectors (K, D) of a grid's codes; None if they cannot be listed."""
        for level, count in zip(self.each(), self._counts, strict=True):
            if grid < count:
                return level.entries(grid)
            grid -= count
        raise IndexError(grid)

    def tables(self) -> dict[str, torch.Tensor]:
        """Return what the quantizers tell besides their entries, as `grids.0-3.NAME` for a level with grids 0 to 3."""
        tables, first = dict[str, torch.Tensor](), 0
        for level, count in zip(self.each(), self._counts, strict=True):
            told: dict[str, torch.Tensor] = getattr(level, "tables", dict)()
            tables |= {f"grids.{first}-{first + count - 1}.{name}": table for name, table in told.items()}
            first += count
        return tables

    def after_step(self, step: int, seed: int, *purpose: str | int) -> None:
        """Move the codebooks of each level once, with random numbers of its own."""
        for number, level in enumerate(self.each()):
            level.after_step(step, seed, *purpose, "level", number)
