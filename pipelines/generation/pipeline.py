"""Both stages from Python: codes out of the prior, images out of the tokenizer.

Shapes: n samples, c channels, H W image, h w code grid.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from typing_extensions import Self

from codegrid.data.loading import in_order
from codegrid.errors import InputError
from codegrid.pipelines.running.checks import check_ranges
from codegrid.stage1_vqvae import VQVAE
from codegrid.stage2_prior import GatedPixelCNN, sample_cached
from codegrid.stage2_prior.sampling.sequential import RowCallback

from .request import Request, complete_codes, make_request


class Samples(NamedTuple):
    """What `TwoStagePipeline.sample` draws."""

    images: torch.Tensor  # (n, c, H, W), float in [-1, 1]
    codes: torch.Tensor  # (n, h, w) int64
    labels: torch.Tensor | None  # (n,) int64, -1 for none


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
        if prior.num_embeddings != tokenizer.num_embeddings:
            raise InputError(
                f"the prior draws from {prior.num_embeddings} codes, the tokenizer has {tokenizer.num_embeddings}: "
                "train a prior on this tokenizer's codes"
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
        seed: int = 0,
        batch_size: int = 128,
        **controls: Any,
    ) -> Samples:
        """Draw new images.

        Args:
            labels: numbers or names of classes, or `none`; one for each sample or one for all; by default all classes
                in turn.
            seed: sample i follows from (seed, i) alone.
            batch_size: samples drawn at once.
            controls: temperature, top_k, top_p and guidance_scale, as in `stage2_prior.Controls`.
        """
        return self.answer(make_request(self.prior, num_samples, labels, seed, controls), batch_size)

    def complete(
        self,
        images: torch.Tensor,
        keep: int | torch.Tensor,
        num_completions: int = 1,
        labels: Sequence[int | str] | torch.Tensor | None = None,
        seed: int = 0,
        batch_size: int = 128,
        **controls: Any,
    ) -> Samples:
        """Keep the first codes of images and draw the rest.

        Args:
            images: (n, c, H, W) in [-1, 1], of the tokenizer's size.
            keep: how many rows of codes, from the top; or a mask (h, w) of those to keep, which must be the first ones
                in raster order.
            num_completions: of each image; they stand behind each other.
            labels: as for `sample`, one for each image or one for all; by default none, where the prior can do without.
        """
        images = images.to(next(self.tokenizer.parameters()).device)
        expected = (self.tokenizer.in_channels, *self.tokenizer.image_size)
        if tuple(images.shape[1:]) != expected:
            raise InputError(f"images of shape {tuple(images.shape)}, but this tokenizer takes (n, *{expected})")
        codes = torch.cat([self.tokenizer.encode(piece).cpu() for piece in images.split(batch_size)])
        request = complete_codes(self.prior, codes, keep, num_completions, labels, seed, controls)
        return self.answer(request, batch_size)

    def answer(self, request: Request, batch_size: int) -> Samples:
        """All samples of a request, on the CPU."""
        check_ranges({"batch_size": batch_size})
        codes = torch.cat([self.draw_codes(request, rows) for rows in in_order(request.num_samples, batch_size)])
        labels = None if request.labels is None else torch.tensor(request.labels)
        return Samples(torch.cat([self.decode(piece).cpu() for piece in codes.split(batch_size)]), codes.cpu(), labels)

    def draw_codes(self, request: Request, rows: range, callback: RowCallback | None = None) -> torch.Tensor:
        """The codes (b, h, w) of some samples of a request, where the prior is; `callback` sees each finished row."""
        here = slice(rows.start, rows.stop)
        labels = None if request.labels is None else request.labels[here]
        height, width = self.tokenizer.grid_shape
        return sample_cached(
            self.prior,
            len(rows),
            height,
            width,
            labels,
            request.seed,
            rows.start,
            request.known_of(rows),
            callback,
            **request.controls,
        )

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (b, h, w) → images (b, c, H, W) in [-1, 1]."""
        return self.tokenizer.decode(codes).clamp(-1, 1)

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, c, H, W) in [-1, 1] → encoded and decoded again."""
        images = images.to(next(self.tokenizer.parameters()).device)
        return self.tokenizer.decode(self.tokenizer.encode(images), tuple(images.shape[-2:])).clamp(-1, 1).cpu()
