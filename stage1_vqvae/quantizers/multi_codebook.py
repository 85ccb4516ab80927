"""Several codebooks of one kind at each site: the common part of residual and product quantizers.

Shapes: b batch, D embedding_dim, *sites one to three axes of the code grids, q depths, g groups, n latents of this
process.
"""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from codegrid.codes import Codes, Grid, Layout, Losses, Moment, Sides
from codegrid.errors import InputError
from codegrid.limits import make_options
from codegrid.protocols import Quantized
from codegrid.registry import TABLES
from codegrid.stage1_vqvae.options import MultiCodebookOptions

from .codebook import CodebookQuantizer
from .estimators import ESTIMATORS


class Part(NamedTuple):
    """Result of one codebook at one depth."""

    book: int  # number of the codebook
    latents: torch.Tensor  # (b, D/g, *sites), its part of what the depths before left over
    codes: torch.Tensor  # (b, *sites) int64
    vectors: torch.Tensor  # (b, D/g, *sites), with the gradient of the codebook


class Depth(NamedTuple):
    """Result of one depth."""

    parts: list[Part]  # of its g groups
    vectors: torch.Tensor  # (b, D, *sites), without gradient


class MultiCodebookQuantizer(nn.Module):
    """q depths of g codebooks: each depth quantizes what those before it left over, each codebook D/g of its numbers.

    r_0 = z,   k_dj = nearest(r_{d−1}[j]),   r_d = r_{d−1} − [e_{k_d1}, ..., e_{k_dg}],   z_q = Σ_d [e_{k_d1}, ...]

    The codes are q·g grids of one shape, coarse first: grid d·g + j is that of group j at depth d.

    The `groups_option` of a subclass names the option that is g.

    Args:
        settings: the subclass's own options.
        of_books: options of the quantizer named by `codebook`, for each codebook; `embedding_dim` is the D of the whole
            latent.
        depths: q.
        shared: whether all depths have one codebook for each group.

    Raises `InputError` if an option is unknown, a value is out of range, or g does not divide D.
    """

    options: ClassVar[type] = MultiCodebookOptions
    groups_option: ClassVar[str]

    def __init__(self, settings: Any, of_books: dict[str, Any], depths: int, shared: bool = False) -> None:
        super().__init__()
        kind, groups = codebook_class(settings.codebook), getattr(settings, self.groups_option)
        self.embedding_dim: int = make_options(kind.options, of_books, kind.__name__).embedding_dim
        if self.embedding_dim % groups:
            nearest = max(1, self.embedding_dim // groups) * groups
            words = f"`{self.groups_option}` {groups} does not divide it: choose a multiple, for example {nearest}"
            raise InputError(f"`embedding_dim` {self.embedding_dim}: {words}")
        of_books = {**of_books, "embedding_dim": self.embedding_dim // groups}
        self.depths, self.groups, self.shared = depths, groups, shared
        books = [kind(**of_books) for _ in range(groups if shared else depths * groups)]
        self.books = nn.ModuleList(books)
        self.config: dict[str, Any] = asdict(settings) | books[0].config | {"embedding_dim": self.embedding_dim}
        self.kmeans_steps: int = books[0].kmeans_steps
        self._notes: list[torch.Tensor] = []

    def layout(self, sites: Sides) -> Layout:
        """Return the q·g grids of latents with these sites."""
        return (Grid(sites, self._book(0).num_embeddings),) * (self.depths * self.groups)

    def forward(self, latents: torch.Tensor, moment: Moment | None = None) -> Quantized:
        """Return vectors, codes and losses of latents (b, D, *sites); with a moment, each codebook notes its rows."""
        if moment is not None and moment.step < self.kmeans_steps:
            self._notes.append(rearrange(latents.detach(), "b d ... -> (b ...) d"))
            moment = None
        with torch.autocast(latents.device.type, enabled=False):
            latents = at_least_float32(latents)
            kept = None if moment is None else self.count_depths(moment)
            depths = list(self._walk(latents, moment))
            vectors = _total([_mask(vectors, kept, depth) for depth, (_, vectors) in enumerate(depths)])
            if moment is not None:
                self._observe(depths, kept)
            codes = tuple(part.codes for parts, _ in depths for part in parts)
            # once, over the whole: at each depth it would count the gradient q times
            vectors = ESTIMATORS[self.config["estimator"]](latents, vectors)
            return Quantized(vectors, codes, self._losses(depths, kept))

    @torch.no_grad()
    def encode(self, latents: torch.Tensor) -> Codes:
        """Return the codes of latents (b, D, *sites), q·g tensors (b, *sites) int64, without changing any state."""
        with torch.autocast(latents.device.type, enabled=False):
            return tuple(part.codes for parts, _ in self._walk(at_least_float32(latents)) for part in parts)

    def look_up(self, codes: Codes) -> torch.Tensor:
        """Return the vectors (b, D, *sites) of codes, q·g tensors (b, *sites); of the first depths alone, coarser ones.

        Raises `InputError` if these are not all codes of the first one or more depths.
        """
        return _total(
            [
                _join([self._book(first + group).look_up((only,)) for group, only in enumerate(of_depth)])
                for first, of_depth in self._by_depth(codes)
            ]
        )

    def entries(self, grid: int) -> torch.Tensor:
        """Return the vectors (K, D) of the codes of a grid: its codebook, with zeros for the other groups."""
        before, entries = grid % self.groups, self._book(grid).entries(0)
        width = entries.shape[1]
        return F.pad(entries, (before * width, (self.groups - before - 1) * width))

    @torch.no_grad()
    def after_step(self, step: int, seed: int, *purpose: str | int) -> None:
        """Move each codebook once, by the rows that it quantized, with random numbers of its own."""
        if step < self.kmeans_steps:
            self._start_in_turn(step, seed, *purpose)
            return
        for number in range(len(self.books)):
            self._book(number).after_step(step, seed, *purpose, "grid", number)

    def count_depths(self, moment: Moment) -> torch.Tensor | None:
        """Return how many depths each sample keeps in this training pass (b,), from 1 to q; None for all of them."""
        return None

    def choose(self, grid: int, book: CodebookQuantizer, latents: torch.Tensor, moment: Moment | None) -> torch.Tensor:
        """Return the codes (b, *sites) of a codebook's part of the latents (b, D/g, *sites): the nearest entries."""
        return book.encode(latents)[0]

    def _book(self, grid: int) -> CodebookQuantizer:
        """Return the codebook of a grid."""
        return cast("CodebookQuantizer", self.books[grid % len(self.books)])

    def _by_depth(self, codes: Codes) -> Iterator[tuple[int, Codes]]:
        """Return the codes of each depth, with the number of its first grid."""
        if not 0 < len(codes) <= self.depths * self.groups or len(codes) % self.groups:
            first, every = self.groups, self.depths * self.groups
            several = f", or a multiple of it up to {every}" if every > first else ""
            raise InputError(f"`codes` is a tuple of {len(codes)}: it must be one of {first}{several}")
        return ((first, codes[first : first + self.groups]) for first in range(0, len(codes), self.groups))

    def _walk(self, rest: torch.Tensor, moment: Moment | None = None) -> Iterator[Depth]:
        """Quantize latents (b, D, *sites), or rows (n, D), depth by depth."""
        for depth in range(self.depths):
            parts = []
            for group, latents in enumerate(rest.chunk(self.groups, 1)):
                grid = depth * self.groups + group
                book = self._book(grid)
                codes = self.choose(grid, book, latents, moment)
                parts.append(Part(grid % len(self.books), latents, codes, book.look_up((codes,))))
            vectors = _join([part.vectors.detach() for part in parts])
            yield Depth(parts, vectors)
            if depth + 1 < self.depths:
                rest = rest - vectors

    def _observe(self, depths: list[Depth], kept: torch.Tensor | None) -> None:
        """Let each codebook note its rows at all of its depths, sample by sample, except for dropped ones.

        So their order does not depend on how a step is cut into pieces, or shared by processes.
        """
        for number in range(len(self.books)):
            own = [(depth, part) for depth, (parts, _) in enumerate(depths) for part in parts if part.book == number]
            rows = torch.stack([rearrange(part.latents.detach(), "b d ... -> b (...) d") for _, part in own], 2)
            codes = torch.stack([part.codes.flatten(1) for _, part in own], 2)  # (b, sites, depths)
            if kept is None:
                self._book(number).observe(rows.flatten(0, 2), codes.flatten())
            else:
                mask = torch.stack([kept > depth for depth, _ in own], 1)[:, None].expand_as(codes)
                self._book(number).observe(rows[mask], codes[mask])

    def _losses(self, depths: list[Depth], kept: torch.Tensor | None) -> Losses:
        """Return sums of the codebooks' terms, and the mean of their commitment losses; a dropped depth adds nothing.

        ‖r_{d−1} − e_{k_d}‖ is the distance of z from the sum of the first d entries, so each depth asks z to stay near
        that sum. Their mean keeps β, against the reconstruction, what it is for one codebook, as in RQ-VAE (Lee et al.
        2022); a sum would tie z the closer to the coarse entries, the more depths refine them. The other terms
        move codebooks: in a sum each learns as it would alone, a shared one by the mean over its depths.
        """
        terms: dict[str, torch.Tensor] = {}
        for depth, (parts, _) in enumerate(depths):
            for book, latents, _, vectors in parts:
                given = (_mask(latents, kept, depth), _mask(vectors.to(latents.dtype), kept, depth))
                for name, term in self._book(book).losses(*given).terms.items():
                    of_each = self.depths if self.shared else 1
                    term = term / (self.depths * self.groups if name == "commitment_loss" else of_each)
                    terms[name] = terms[name] + term if name in terms else term
        return Losses(terms, {})

    def _start_in_turn(self, step: int, seed: int, *purpose: str | int) -> None:
        """Set each codebook by k-means of what those before it leave over, once they have been set.

        A shared one is set again and again, by the rows of one more depth each time; later steps need the last alone.
        """
        notes, self._notes = self._notes, []
        latents = at_least_float32(torch.cat(notes) if notes else self.entries(0)[:0])
        for depth in range(self.depths - 1 if self.shared and step else 0, self.depths):
            walked = list(islice(self._walk(latents), depth + 1))
            for group in range(self.groups):
                rows = [parts[group].latents for parts, _ in (walked if self.shared else walked[-1:])]
                joint = torch.stack(rows, 1).flatten(0, 1)
                grid = depth * self.groups + group
                self._book(grid).observe(joint, *self._book(grid).encode(joint))
                self._book(grid).after_step(step, seed, *purpose, "grid", grid)


def codebook_class(name: str) -> type[CodebookQuantizer]:
    """Return the class of a quantizer that has a codebook, by its name."""
    table = TABLES["quantizer"]
    if name not in table or not issubclass(table[name], CodebookQuantizer):
        raise InputError(f"`codebook` {name!r}: choose a quantizer that has a codebook, for example ema or gradient")
    return table[name]


def at_least_float32(latents: torch.Tensor) -> torch.Tensor:
    """Return latents with at least the precision of float32."""
    # differences in half precision would lose what the finer codebooks are for
    return latents.to(torch.promote_types(latents.dtype, torch.float32))


def _mask(values: torch.Tensor, kept: torch.Tensor | None, depth: int) -> torch.Tensor:
    """Return values (b, ...) with zeros for the samples that have dropped a depth."""
    return values if kept is None else torch.where(kept.view(-1, *[1] * (values.ndim - 1)) > depth, values, 0)


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    """Return the groups' vectors (b, D/g, *sites) as (b, D, *sites), in the memory format of a single codebook's."""
    return parts[0] if len(parts) == 1 else torch.cat([part.movedim(1, -1) for part in parts], -1).movedim(-1, 1)


def _total(vectors: list[torch.Tensor]) -> torch.Tensor:
    """Return the sum, always coarse first: another order would round to other bits."""
    total = vectors[0]
    for finer in vectors[1:]:
        total = total + finer
    return total
