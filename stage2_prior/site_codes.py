"""Codes of a site, one or several: their embedding, and the heads that tell their probabilities.

The codes of a site are drawn one after the other. A network sees earlier sites, as the sums of their embedded codes;
the head of a grid also sees the codes of the site's earlier grids.

Shapes: b batch, h w code grid, c channels, K num_embeddings of a grid.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from codegrid.codes import Codes, Layout
from codegrid.errors import InputError


def check_one_shape(layout: Layout, prior: str) -> None:
    """Raise `InputError` if a layout is not of grids (h, w) of one shape."""
    shapes = {grid.shape for grid in layout}
    if len(shapes) != 1 or len(layout[0].shape) != 2:
        words = ", ".join("×".join(map(str, grid.shape)) for grid in layout) or "no grid"
        known = "as ema, residual or fsq make"
        raise InputError(f"`layout` of {words}: a {prior} prior learns grids (h, w) of one shape, {known}")


def embed(tables: Iterable[nn.Module], codes: Codes, shown: Codes | None = None) -> Tensor:
    """Return the sum (b, c, h, w) over grids of the embedded codes (b, h, w), 0 for hidden ones."""
    embedded = [table(grid) for table, grid in zip(tables, codes, strict=True)]
    if shown is not None:
        embedded = [grid * mask[..., None] for grid, mask in zip(embedded, shown, strict=True)]
    total: Tensor = embedded[0]
    for grid in embedded[1:]:
        total = total + grid
    return total.permute(0, 3, 1, 2)


def make_heads(layout: Layout, channels: int) -> nn.ModuleList:
    """Return a head for each grid: features (b, c, h, w) → logits (b, K, h, w)."""
    return nn.ModuleList(
        nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, 4 * channels, 1),
            nn.ReLU(),
            nn.Conv2d(4 * channels, grid.num_embeddings, 1),
        )
        for grid in layout
    )


def read_heads(
    heads: nn.ModuleList, within_site: nn.ModuleList, features: Tensor, codes: Codes, shown: Codes | None = None
) -> tuple[Tensor, ...]:
    """Return the logits (b, K, h, w) of each grid, given features (b, c, h, w) that depend on earlier sites alone.

    `within_site` embeds the codes of each grid but the last, for the heads of later grids.
    """
    logits = [heads[0](features)]
    for grid in range(1, len(codes)):
        hidden = None if shown is None else shown[grid - 1 : grid]
        features = features + embed([within_site[grid - 1]], codes[grid - 1 : grid], hidden)
        logits.append(heads[grid](features))
    return tuple(logits)
