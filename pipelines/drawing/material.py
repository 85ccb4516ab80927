"""Material for figures: models, some images with their codes, and how often each code occurs.

Shapes: n images, c channels, H W image, *shape the sites of each grid, K num_embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch

from codegrid.codes import Codes
from codegrid.data.images import evenly_spaced, to_float
from codegrid.data.loading import in_batches, in_order, load_batches
from codegrid.pipelines.generation.artifacts import Artifacts
from codegrid.pipelines.generation.tokenizers import encode_batches
from codegrid.protocols import Tokenizer

MAX_IMAGES = 2000  # used, however many there are


@dataclass
class Material:
    """Artifacts of a run, with a tokenizer and images; everything derived from them is computed once."""

    artifacts: Artifacts
    batch_size: int
    num_workers: int = 0
    others: dict[str, Tokenizer] = field(default_factory=dict)  # by their folders: to compare reconstructions

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        assert self.artifacts.tokenizer is not None
        return self.artifacts.tokenizer

    @cached_property
    def images(self) -> torch.Tensor:
        """Some images of the data set (n, c, H, W) uint8, spread over all of it."""
        images = self.artifacts.images
        assert images is not None
        chosen = in_batches(evenly_spaced(len(images), MAX_IMAGES), self.batch_size)
        batches = load_batches(images, chosen, self.num_workers)
        return torch.cat([batch.images for batch in batches])

    @cached_property
    def codes(self) -> Codes:
        """The codes (n, *shape) of these images."""
        return encode_batches(self.tokenizer, map(to_float, self.images.split(self.batch_size)))

    def code_batches(self) -> Iterator[Codes]:
        """Yield the codes (b, *shape) that are counted: those that were given, or those of the images."""
        exported = self.artifacts.codes
        if exported is None:
            yield from zip(*(grid.split(self.batch_size) for grid in self.codes), strict=True)
            return
        for batch in load_batches(exported, in_order(len(exported), self.batch_size)):
            yield batch.codes

    @cached_property
    def counts(self) -> list[torch.Tensor]:
        """The number of times each code of each grid occurs (K,) int64."""
        counts = [torch.zeros(grid.num_embeddings, dtype=torch.int64) for grid in self.tokenizer.layout]
        for codes in self.code_batches():
            for sums, grid in zip(counts, codes, strict=True):
                sums += torch.bincount(grid.flatten(), minlength=len(sums))
        return counts

    @cached_property
    def counted(self) -> str:
        """A phrase that says what was counted."""
        exported = self.artifacts.codes
        return f"{len(self.images):,} images" if exported is None else f"the codes of {len(exported):,} exported images"

    def some(self, count: int) -> list[int]:
        """Return the numbers of up to `count` images, spread over all."""
        return evenly_spaced(len(self.images), count)

    @torch.no_grad()
    def reconstruct(self, numbers: list[int]) -> torch.Tensor:
        """Return images with these numbers, decoded from their codes: (m, c, H, W), about [-1, 1]."""
        codes = tuple(grid[numbers].to(self.artifacts.device) for grid in self.codes)
        return self.tokenizer.decode(codes).cpu()
