"""What the pictures are drawn from: models, some images with their codes, and how often each code occurs.

Shapes: n images, c channels, H W image, h w code grid, K num_embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from codegrid.data.images import evenly_spaced, to_float
from codegrid.data.loading import in_batches, in_order, load_batches
from codegrid.stage1_vqvae.usage import UsageCounter

if TYPE_CHECKING:
    from codegrid.pipelines.generation.pipeline import TwoStagePipeline
    from codegrid.stage1_vqvae import VQVAE

MOST_IMAGES = 2000  # looked at, however many there are


@dataclass
class Material:
    """The parts that were given, and what follows from them, once."""

    tokenizer: VQVAE
    pipeline: TwoStagePipeline | None  # with the prior
    dataset: Any  # of images
    exported: Any  # codes that were given, or None
    batch_size: int
    num_workers: int

    @cached_property
    def images(self) -> torch.Tensor:
        """Some images of the data set (n, c, H, W) uint8, spread over all of it."""
        numbers = in_batches(evenly_spaced(len(self.dataset), MOST_IMAGES), self.batch_size)
        return torch.cat([batch.images for batch in load_batches(self.dataset, numbers, self.num_workers)])

    @cached_property
    def codes(self) -> torch.Tensor:
        """The codes (n, h, w) of these images."""
        device = next(self.tokenizer.parameters()).device
        pieces = self.images.split(self.batch_size)
        return torch.cat([self.tokenizer.encode(to_float(piece.to(device))).cpu() for piece in pieces])

    def code_batches(self) -> Iterator[torch.Tensor]:
        """The codes (b, h, w) that are counted: those that were given, or those of the images."""
        if self.exported is None:
            yield from self.codes.split(self.batch_size)
            return
        for batch in load_batches(self.exported, in_order(len(self.exported), self.batch_size)):
            yield batch.codes

    @cached_property
    def counts(self) -> torch.Tensor:
        """How often each entry occurs (K,) int64."""
        usage = UsageCounter(self.tokenizer.num_embeddings)
        for codes in self.code_batches():
            usage.add(codes)
        return usage.counts

    @cached_property
    def counted(self) -> str:
        """What was counted, in words."""
        given = self.exported is not None
        return f"{len(self.exported):,} exported grids" if given else f"{len(self.images):,} images"

    def some(self, count: int) -> list[int]:
        """Numbers of up to `count` images, spread over all."""
        return evenly_spaced(len(self.images), count)

    def reconstruct(self, numbers: list[int]) -> torch.Tensor:
        """Images with these numbers, decoded from their codes: (m, c, H, W), about [-1, 1]."""
        device = next(self.tokenizer.parameters()).device
        return self.tokenizer.decode(self.codes[numbers].to(device), self.tokenizer.image_size).cpu()
