"""Codes of padding: sites after the end of an item, which get codes as all sites do, but teach nothing.

Shapes: b batch, t sites, D embedding_dim, n sites of a batch that count.
"""

from typing import Any, cast

import torch

from codegrid.codes import HIDDEN, Codes, Moment
from codegrid.padding import counted
from codegrid.protocols import Quantized


def hide_padding(codes: Codes, lengths: torch.Tensor) -> Codes:
    """Return codes (b, t), HIDDEN at the sites after `lengths` (b,), which are counted in sites of the finest grid.

    Sites of coarser grids, of which each stands for several, are padding if they begin there.
    """
    finest = max(grid.shape[1] for grid in codes)
    ends = [-(-lengths.to(grid.device) * grid.shape[1] // finest) for grid in codes]
    return tuple(grid.where(counted(end, grid.shape[1]), HIDDEN) for grid, end in zip(codes, ends, strict=True))


def quantize_counted(
    quantizer: Any, latents: torch.Tensor, lengths: torch.Tensor | None, moment: Moment | None = None
) -> Quantized:
    """Quantize latents (b, D, t), of which only the first `lengths` (b,) of each item count, by default all.

    The others get vectors without a gradient; their codes are HIDDEN. A quantizer that looks at several sites at once,
    such as `multiscale`, learns padding, too.
    """
    count = latents.shape[2]
    each_alone = all(grid.shape == (count,) for grid in quantizer.layout((count,)))
    if lengths is None or not each_alone or int(lengths.min()) >= count:
        return cast(Quantized, quantizer(latents, moment))
    with torch.no_grad():
        codes = quantizer.encode(latents)
        whole = quantizer.look_up(codes).mT.contiguous()
    codes = hide_padding(codes, lengths)
    sites = codes[0] != HIDDEN
    if moment is not None:
        moment = moment._replace(noise=moment.noise.of_sites(sites))
    vectors, _, losses = quantizer(latents.mT[sites][..., None], moment)  # (n, D, 1)
    return Quantized(whole.to(vectors.dtype).masked_scatter(sites[..., None], vectors).mT, codes, losses)
