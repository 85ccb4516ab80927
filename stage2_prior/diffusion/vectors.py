"""Vectors that codes stand for, standardised, and the codes that are nearest to such vectors.

Shapes: b batch, n rows, h w code grid, D embedding_dim, K num_embeddings of a grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.codes import Codes, Known, Layout
from codegrid.devices import widest
from codegrid.errors import InputError
from codegrid.limits import MAX_WIDTH, check_whole

PAIRS = 2**24  # of a vector and an entry, compared at once
CONSTANT = 1e-6  # spread of a channel, relative to that of the widest one, below which it says nothing


class CodeVectors(nn.Module):
    """The sum of the vectors of a site's codes, with mean 0 and standard deviation 1 in each channel.

    Everything is kept in buffers. Until `standardise` is called, vectors are as they are.

    Args:
        entries: the vectors (K, D) of the codes of each grid.
        one_scale: bring only the mean of the variances of all channels to 1.
    """

    mean: Tensor  # (D,)
    spread: Tensor  # (D,)

    def __init__(self, entries: Sequence[Tensor], one_scale: bool = False) -> None:
        super().__init__()
        self.one_scale = one_scale
        self.count, self.embedding_dim = len(entries), entries[0].shape[1]
        for number, table in enumerate(entries):
            self.register_buffer(f"entries_{number}", table)
        self.register_buffer("mean", torch.zeros(self.embedding_dim))
        self.register_buffer("spread", torch.ones(self.embedding_dim))

    @property
    def entries(self) -> list[Tensor]:
        """The vectors (K, D) of the codes of each grid."""
        return [self.get_buffer(f"entries_{number}") for number in range(self.count)]

    def look_up(self, codes: Codes) -> Tensor:
        """Return the vectors (b, D, h, w) of codes (b, h, w), not standardised."""
        first, *others = (F.embedding(grid, table) for grid, table in zip(codes, self.entries, strict=True))
        return sum(others, first).permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def standardise(self, batches: Iterable[Codes]) -> None:
        """Take mean and standard deviation from codes (b, h, w); a channel that is always the same is only shifted."""
        count, total, squares = 0, torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        for codes in batches:
            rows = self.look_up(codes).to(widest(self.mean.device)).transpose(0, 1).flatten(1)  # (D, n)
            count, total, squares = count + rows.shape[1], total + rows.sum(1), squares + rows.square().sum(1)
        if not count:
            return
        variance = (squares / count - (total / count).square()).clamp_min(0)
        if self.one_scale:
            variance = variance.mean().expand_as(variance)
        spread = variance.sqrt()
        self.mean.copy_(total / count)
        self.spread.copy_(torch.where(spread > CONSTANT * spread.max(), spread, 1.0))

    def forward(self, codes: Codes) -> Tensor:
        """Return the standardised vectors (b, D, h, w) of codes (b, h, w)."""
        return (self.look_up(codes) - _per_channel(self.mean)) / _per_channel(self.spread)

    @torch.no_grad()
    def nearest(self, vectors: Tensor, known: Known | None = None) -> Codes:
        """Return the codes (b, h, w) of each grid that are nearest to standardised vectors (b, D, h, w).

        Of several codes a site, each is the nearest to what those before it leave over. Known codes stay.
        """
        exact = torch.promote_types(vectors.dtype, torch.float32)
        rest = vectors.to(exact) * _per_channel(self.spread) + _per_channel(self.mean)
        shape, rest, codes = (len(vectors), *vectors.shape[2:]), rest.movedim(1, -1).flatten(0, -2), []
        for number, table in enumerate(self.entries):
            entries = table.to(rest.dtype)
            found = nearest_entries(rest, entries).view(shape)
            if known is not None:
                found = torch.where(known.mask[number], known.codes[number], found)
            codes.append(found)
            rest = rest - F.embedding(found.flatten(), entries)
        return tuple(codes)


def nearest_entries(rows: Tensor, entries: Tensor) -> Tensor:
    """Return the index (n,) of the entry (K, D) that is nearest to each row (n, D)."""
    parts = rows.split(max(1, PAIRS // len(entries)))
    return torch.cat([torch.cdist(part, entries).argmin(1) for part in parts])


def entries_of(tables: Mapping[str, Tensor], grids: Sequence[int], layout: Layout) -> list[Tensor]:
    """Return the vectors (K, D) of the codes of each grid, from the tables of a code dataset.

    Raises `InputError` if there are none, or they do not fit the grids or do not simply add up.
    """
    if any(name.startswith("phi.") for name in tables):
        raise InputError("these codes are scales of one another, which a diffusion prior cannot learn: take next-scale")
    entries = [tables.get(f"entries.{number}") for number in grids]
    missing = [number for number, table in zip(grids, entries, strict=True) if table is None]
    if missing:
        raise InputError(
            f"a diffusion prior needs the vectors that codes stand for, and those of grid {missing[0]} are not known: "
            "give the `tokenizer`, whose codebooks must have fewer than 2²⁰ entries"
        )
    found = [table.detach().to("cpu", torch.float32, copy=True) for table in entries if table is not None]
    dim = found[0].shape[-1]
    if [tuple(table.shape) for table in found] != [(grid.num_embeddings, dim) for grid in layout]:
        raise InputError("the tables of these codes do not fit each other: export the codes again")
    return found


def random_entries(layout: Layout, embedding_dim: int) -> list[Tensor]:
    """Return random vectors (K, D) for the codes of each grid, each grid's smaller than those before."""
    check_whole("embedding_dim", embedding_dim, 1, MAX_WIDTH)
    return [torch.randn(grid.num_embeddings, embedding_dim) / (number + 1) for number, grid in enumerate(layout)]


def _per_channel(numbers: Tensor) -> Tensor:
    return numbers[:, None, None]
