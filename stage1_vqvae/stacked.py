"""Two tokenizers as one: the upper encodes the codes of the lower.

Shapes: b batch, c channels, *size an image's sides, *shape the sites of each grid, D embedding_dim of the upper.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from codegrid.codes import HIDDEN, Codes, Condition, Latents, Layout, Moment, Sides, Signal, describe_layout
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.protocols import NO_CONDITION, Quantizer, Reconstructed, Tokenizer

from .code_tokenizer import CodeTokenizer


class StackedTokenizer(nn.Module):
    """A tokenizer and one over its codes, as a tokenizer of images whose codes are those of the upper one.

    Args:
        lower: a tokenizer of images, perhaps itself a stack.
        upper: a tokenizer over the codes of `lower`.

    Raises `InputError` if the upper one was trained on the codes of another tokenizer, or is not one over codes.

    Examples:
        >>> stack = StackedTokenizer(load("runs/digits/tokenizer"), load("runs/triples/tokenizer"))  # doctest: +SKIP
        >>> len(stack.encode(images))  # doctest: +SKIP
        3
    """

    kind: ClassVar[str] = "tokenizer"
    draws: ClassVar[bool] = True  # what is decoded differs by design from what was encoded

    def __init__(self, lower: Tokenizer, upper: CodeTokenizer) -> None:
        super().__init__()
        check_over(lower, upper)
        self.lower, self.upper = lower, upper

    @property
    def stack(self) -> tuple[Any, ...]:
        """The tokenizers, that of images first."""
        return (*self.lower.stack, self.upper)

    @property
    def layout(self) -> Layout:
        """The grids of the upper one."""
        return self.upper.layout

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer of the upper one."""
        return self.upper.quantizer

    @property
    def signal(self) -> Signal:
        """The images of the lower one."""
        return self.lower.signal

    @property
    def data_variance(self) -> float:
        """The variance of these images."""
        return self.lower.data_variance

    @property
    def config(self) -> dict[str, Any]:
        """The config of the upper one."""
        return self.upper.config

    @property
    def provenance(self) -> dict[str, Any]:
        """The provenance of the upper one, and the data set of the lower one."""
        told = {name: self.lower.provenance[name] for name in ("dataset",) if name in self.lower.provenance}
        return {**told, **self.upper.provenance}

    @property
    def loaded_from(self) -> Path | None:
        """The folder of the lower one, which records its data set."""
        return getattr(self.lower, "loaded_from", None)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.upper.device

    def fingerprint(self) -> str:
        """Return the fingerprint of the upper one, which belongs to no other lower one."""
        return self.upper.fingerprint()

    def forward(self, x: Tensor, given: Condition = NO_CONDITION, moment: Moment | None = None) -> Reconstructed:
        """Raise `InputError`: each of the two is trained alone."""
        raise InputError("two tokenizers are not trained together: train the upper one with `over`")

    @torch.no_grad()
    def encode(self, x: Tensor) -> Codes:
        """Return the upper codes (b, *shape) of images x (b, c, *size) in [-1, 1]."""
        return self.upper.encode(self.lower.encode(x))

    @torch.no_grad()
    def decode(
        self, codes: Codes, size: Sides | None = None, given: Condition = NO_CONDITION, noise: Noise | None = None
    ) -> Tensor:
        """Draw images (b, c, *size): lower codes are drawn given the upper ones, with noise, by default of seed 0."""
        noise = noise or Noise(0, 0, len(codes[-1]), self.device)
        return self.lower.decode(self.upper.decode(codes, None, given, noise.of("lower codes")), size, given, noise)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return images drawn for the upper codes of images x, in their own size."""
        return self.decode(self.encode(x), tuple(x.shape[2:]))

    def encode_latents(self, x: Tensor) -> Latents:
        """Return the upper latents (b, D, 1, 1) of images x."""
        return self.upper.encode_latents(self.lower.encode(x))

    def decode_latents(self, latents: Latents, quantize: bool) -> Tensor:
        """Draw images for upper latents (b, D, 1, 1), quantized first if `quantize`."""
        return self.lower.decode(self.upper.decode_latents(latents, quantize))

    def nll(self, x: Tensor, codes: Codes, given: Condition = NO_CONDITION) -> Tensor | None:
        """Return a bound on −log p(x | codes), (b,) in nats: that of the lower codes, and of x given those.

        Returns None if the lower one has no likelihood.
        """
        below = self.lower.encode(x)
        of_images = self.lower.nll(x, below, given)
        return None if of_images is None else of_images + self.upper.nll(below, codes)

    def preview(self, codes: Codes, drawn: tuple[Tensor, ...]) -> Tensor:
        """Return pictures (b, c, *size) of an unfinished draw: 0 (grey) until an upper code is drawn."""
        below = self.upper.preview(codes, drawn)
        return self.lower.preview(tuple(grid.clamp_min(0) for grid in below), tuple(grid != HIDDEN for grid in below))

    def kept_sites(self, mask: Tensor) -> tuple[Tensor, ...]:
        """Return, for each grid, the sites (*shape) bool whose own pixels are all in `mask` (*size) bool."""
        below = [sites.all().view(1, 1) for sites in self.lower.kept_sites(mask)]
        return self.upper.kept_sites(torch.stack(below).all(0))

    def after_step(self, step: int, seed: int) -> None:
        """Do nothing: a stack is not trained."""

    def inherit(self, other: Any) -> list[str]:
        """Raise `InputError`: a stack is not trained."""
        raise InputError("two tokenizers as one cannot start from other weights: train the upper one alone")


def check_over(lower: Tokenizer, upper: Any) -> None:
    """Raise `InputError`, naming what differs, if `upper` was not trained on the codes of `lower`."""
    if upper.signal.kind != "codes":
        raise InputError(
            f"`tokenizer`: a tokenizer of {upper.signal.kind}s cannot follow another one: give that of the images "
            "first, then the one over its codes"
        )
    learnt, found = upper.provenance.get("tokenizer_fingerprint"), lower.fingerprint()
    if learnt != found:
        raise InputError(
            "`tokenizer`: the upper tokenizer was trained on the codes of another one (the fingerprints differ: "
            f"{str(learnt)[:12]} and {found[:12]}): give the one that made them, or train one over this one's codes"
        )
    if upper.over != tuple(lower.layout):
        theirs, ours = describe_layout(upper.over), describe_layout(lower.layout)
        raise InputError(f"`tokenizer`: the upper one encodes {theirs}, but the lower one makes {ours}: train it again")
