"""Residual quantization: several codes at each site, each of which quantizes what those before it left over.

Shapes: b batch, D embedding_dim, *sites one to three axes of the code grids, q num_quantizers, n latents of this
process.
"""

from dataclasses import fields
from typing import Any, ClassVar, cast

import torch
from einops import rearrange
from torch import nn

from codegrid.codes import Codes, Layout, Losses, Moment, Sides
from codegrid.errors import InputError
from codegrid.limits import make_options
from codegrid.protocols import Quantized
from codegrid.registry import TABLES
from codegrid.stage1_vqvae.options import ResidualOptions

from .codebook import CodebookQuantizer
from .nearest import StraightThrough

OWN = {field.name for field in fields(ResidualOptions)}


class ResidualQuantizer(nn.Module):
    """q codebooks of one kind, coarse first; the codes are q grids of one shape.

    r_0 = z,   k_d = nearest(r_{d−1}),   r_d = r_{d−1} − e_{k_d},   z_q = Σ_d e_{k_d}

    Args:
        num_quantizers: q.
        codebook: name of the quantizer that each codebook is.
        options: those of that quantizer, for each of the codebooks.

    Raises `InputError` where it has no such option, or a value is out of its range.

    Worked example: latents (8, 64, 7, 7) with num_quantizers=2, num_embeddings=512, embedding_dim=64
    → vectors (8, 64, 7, 7), codes ((8, 7, 7), (8, 7, 7)) in 0 ... 511.
    """

    options: ClassVar[type] = ResidualOptions

    def __init__(self, **options: Any) -> None:
        super().__init__()
        own = {name: value for name, value in options.items() if name in OWN}
        settings = make_options(self.options, own, type(self).__name__)
        kind = codebook_class(settings.codebook)
        of_each = {name: value for name, value in options.items() if name not in OWN}
        books = [kind(**of_each) for _ in range(settings.num_quantizers)]
        self.books = nn.ModuleList(books)
        self.config: dict[str, Any] = {name: getattr(settings, name) for name in sorted(OWN)} | books[0].config
        self.embedding_dim: int = books[0].embedding_dim
        self.kmeans_steps: int = books[0].kmeans_steps
        self._notes: list[torch.Tensor] = []

    def layout(self, sites: Sides) -> Layout:
        """Return the q grids of latents with these sites."""
        return tuple(grid for book in self._each() for grid in book.layout(sites))

    def forward(self, latents: torch.Tensor, moment: Moment | None = None) -> Quantized:
        """(b, D, *sites) → vectors, codes, losses. With a moment each codebook notes its residuals."""
        if moment is not None and moment.step < self.kmeans_steps:
            self._notes.append(rearrange(latents.detach(), "b d ... -> (b ...) d"))
            moment = None
        with torch.autocast(latents.device.type, enabled=False):
            residual = latents = _exact(latents)
            vectors, codes, losses = [], [], []
            for book in self._each():
                found = book(residual, moment)
                vectors.append(found.vectors.detach())
                codes += found.codes
                losses.append(found.losses)
                residual = residual - vectors[-1]
            # once, over the sum: at each depth it would count the gradient q times
            return Quantized(StraightThrough.apply(latents, _total(vectors)), tuple(codes), self._losses(losses))

    @torch.no_grad()
    def encode(self, latents: torch.Tensor) -> Codes:
        """(b, D, *sites) → q tensors of codes (b, *sites) int64. Changes nothing."""
        with torch.autocast(latents.device.type, enabled=False):
            residual = _exact(latents)
            codes: Codes = ()
            for book in self._each():
                codes += book.encode(residual)
                residual = residual - book.look_up(codes[-1:])
            return codes

    def look_up(self, codes: Codes) -> torch.Tensor:
        """Codes, q tensors (b, *sites) → the sum of their entries (b, D, *sites)."""
        return _total([book.look_up((of_book,)) for book, of_book in zip(self._each(), codes, strict=True)])

    def entries(self, grid: int) -> torch.Tensor:
        """Return the codebook (K, D) of one depth."""
        return self._each()[grid].entries(0)

    @torch.no_grad()
    def after_step(self, step: int, seed: int, *purpose: str | int) -> None:
        """Move each codebook by the residuals that it was given, and by random numbers of its own."""
        if step < self.kmeans_steps:
            self._start_in_turn(step, seed, *purpose)
            return
        for depth, book in enumerate(self._each()):
            book.after_step(step, seed, *purpose, "grid", depth)

    def _each(self) -> list[CodebookQuantizer]:
        """The codebooks, coarse first."""
        return cast("list[CodebookQuantizer]", list(self.books))

    def _losses(self, of_books: list[Losses]) -> Losses:
        """Sums of the codebooks' terms, and the mean of their commitment losses.

        ‖r_{d−1} − e_{k_d}‖ is the distance of z from the sum of the first d entries, so each depth asks z to stay near
        to it. Their mean keeps β, against the reconstruction, what it is for one codebook, as in RQ-VAE (Lee et al.
        2022); a sum would tie z ever closer to the coarse entries the more there are to refine them. The other terms
        move codebooks, each its own: in a sum each learns as it would alone.
        """
        terms: dict[str, torch.Tensor] = {}
        for losses in of_books:
            for name, term in losses.terms.items():
                term = term / len(self.books) if name == "commitment_loss" else term
                terms[name] = terms[name] + term if name in terms else term
        return Losses(terms, {})

    def _start_in_turn(self, step: int, seed: int, *purpose: str | int) -> None:
        """Set each codebook by k-means of what those before it leave over, once they have been set."""
        notes, self._notes = self._notes, []
        residual = _exact(torch.cat(notes) if notes else self.entries(0)[:0])
        for depth, book in enumerate(self._each()):
            book.observe(residual, *book.encode(residual))
            book.after_step(step, seed, *purpose, "grid", depth)
            residual = residual - book.look_up(book.encode(residual))


def _exact(latents: torch.Tensor) -> torch.Tensor:
    # differences in half precision would lose what the finer codebooks are for
    return latents.to(torch.promote_types(latents.dtype, torch.float32))


def _total(vectors: list[torch.Tensor]) -> torch.Tensor:
    """Coarse first, wherever it is needed: another order would round to other bits."""
    total = vectors[0]
    for finer in vectors[1:]:
        total = total + finer
    return total


def codebook_class(name: str) -> type[CodebookQuantizer]:
    """Return the class of a quantizer that has a codebook, by its name."""
    table = TABLES["quantizer"]
    if name not in table or not issubclass(table[name], CodebookQuantizer):
        raise InputError(f"`codebook` {name!r}: choose a quantizer that has a codebook, for example ema or gradient")
    return table[name]
