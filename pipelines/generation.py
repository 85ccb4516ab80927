"""Both stages from Python: codes out of the prior, images out of the tokenizer.

Shapes: n samples, c channels, H W image, h w code grid.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm
from typing_extensions import Self

from stage1_vqvae import VQVAE
from stage2_prior import GatedPixelCNN, sample_cached
from storage.errors import InputError

from .checks import check_ranges, number_labels


class Samples(NamedTuple):
    """What `TwoStagePipeline.sample` draws."""

    images: torch.Tensor  # (n, c, H, W), float in [-1, 1]
    codes: torch.Tensor  # (n, h, w) int64
    labels: torch.Tensor | None  # (n,) int64


class TwoStagePipeline:
    """A tokenizer and a prior that was trained on its codes.

    Raises `InputError` where the prior learnt the codes of another tokenizer: the shapes would fit, and the
    pictures would be garbage.
    """

    def __init__(self, tokenizer: VQVAE, prior: GatedPixelCNN) -> None:
        if prior.provenance.get("tokenizer_fingerprint") != tokenizer.fingerprint():
            raise InputError(
                "this prior was trained on the codes of another tokenizer (the fingerprints differ): "
                "give the tokenizer that made them, or train a prior on this one's codes"
            )
        self.tokenizer = tokenizer
        self.prior = prior

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load a folder that holds `tokenizer/` and `prior/`, as the demo leaves it."""
        folder = Path(folder)
        return cls.from_parts(folder / "tokenizer", folder / "prior", device)

    @classmethod
    def from_parts(cls, tokenizer: str | Path, prior: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load the two model folders, or hub names `hf:owner/name`."""
        return cls(VQVAE.from_pretrained(tokenizer, device), GatedPixelCNN.from_pretrained(prior, device))

    @property
    def classes(self) -> list[str]:
        """The names of the labels; empty for an unconditional prior."""
        return self.prior.provenance.get("classes", [])

    def sample(
        self,
        num_samples: int = 1,
        labels: Sequence[int | str] | torch.Tensor | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        batch_size: int = 128,
    ) -> Samples:
        """Draw new images.

        Args:
            labels: numbers or names of classes, one for each sample or one for all; by default all classes in turn.
            temperature: divides the logits; 0 takes the likeliest code at each site.
            seed: sample i follows from (seed, i) alone.
            batch_size: samples drawn at once.
        """
        batches = list(self.sample_batches(num_samples, labels, temperature, seed, batch_size))
        labels_of_all = None if batches[0].labels is None else torch.cat([batch.labels for batch in batches])
        images = torch.cat([batch.images for batch in batches])
        return Samples(images, torch.cat([batch.codes for batch in batches]), labels_of_all)

    def sample_batches(
        self,
        num_samples: int,
        labels: Sequence[int | str] | torch.Tensor | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        batch_size: int = 128,
        progress: bool = False,
    ) -> Iterator[Samples]:
        """The same, batch by batch, on the CPU."""
        check_ranges({"num_samples": num_samples, "temperature": temperature, "seed": seed, "batch_size": batch_size})
        labels = labels.tolist() if isinstance(labels, torch.Tensor) else [] if labels is None else list(labels)
        numbers = number_labels(labels, num_samples, self.prior.num_classes, self.classes)
        height, width = self.tokenizer.grid_shape
        bar = tqdm(total=num_samples, desc="sampling", unit="img", disable=not progress)
        for first in range(0, num_samples, batch_size):
            size = min(batch_size, num_samples - first)
            chosen = None if numbers is None else torch.tensor(numbers[first : first + size])
            codes = sample_cached(self.prior, size, height, width, chosen, seed, first, temperature)
            yield Samples(self.tokenizer.decode(codes).clamp(-1, 1).cpu(), codes.cpu(), chosen)
            bar.update(size)
        bar.close()

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, c, H, W) in [-1, 1] → encoded and decoded again."""
        images = images.to(next(self.tokenizer.parameters()).device)
        return self.tokenizer.decode(self.tokenizer.encode(images), tuple(images.shape[-2:])).clamp(-1, 1).cpu()
