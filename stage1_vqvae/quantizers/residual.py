"""Residual quantization: several codes at each site, each of which quantizes what those before it left over.

Shapes: b batch, D embedding_dim, *sites one to three axes of the code grids, q num_quantizers, g num_groups.
"""

from typing import Any, ClassVar

import torch
from einops import rearrange

from codegrid.codes import Moment
from codegrid.errors import InputError
from codegrid.limits import split_options
from codegrid.stage1_vqvae.options import ResidualOptions

from .codebook import CodebookQuantizer
from .multi_codebook import MultiCodebookQuantizer
from .soft import draw_near


class ResidualQuantizer(MultiCodebookQuantizer):
    """q codebooks of one kind, coarse first; the codes are q grids of one shape.

    r_0 = z,   k_d = nearest(r_{d−1}),   r_d = r_{d−1} − e_{k_d},   z_q = Σ_d e_{k_d}

    `codes` are those of all depths, in training too. If a sample drops depths, its `vectors` are what `look_up`
    returns for the grids before them. In the steps of k-means nothing is dropped or drawn.

    Args:
        num_quantizers: q.
        codebook: name of the quantizer that learns each codebook.
        num_groups: g parts of a latent, each with q codebooks of its own; grid d·g + j is of part j at depth d.
        shared: whether all depths have one codebook (for each group), which learns from all of their residuals.
        codes_dropout: share of the samples of a training pass that keep a random number of depths, 1 to q.
        codes_temperature: τ. Above 0, codes are drawn in training, with probability softmax(−‖r − e‖² / τ), as in
            RQ-VAE (Lee et al. 2022).
        options: those of the quantizer `codebook`, for each of the codebooks; `embedding_dim` is the D of the whole
            latent.

    Raises `InputError` if an option is unknown, a value is out of range, or g does not divide D.

    Worked example: latents (8, 64, 7, 7) with num_quantizers=2, num_embeddings=512, embedding_dim=64
    → vectors (8, 64, 7, 7), codes ((8, 7, 7), (8, 7, 7)) in 0 ... 511.
    """

    options: ClassVar[type] = ResidualOptions
    groups_option: ClassVar[str] = "num_groups"

    def __init__(self, **options: Any) -> None:
        settings, of_books = split_options(self.options, options, type(self).__name__)
        super().__init__(settings, of_books, settings.num_quantizers, settings.shared)
        self.codes_dropout: float = settings.codes_dropout
        self.codes_temperature: float = settings.codes_temperature
        if self.codes_temperature and self.config.get("estimator") == "rotation":
            words = f"with `codes_temperature` {self.codes_temperature:g} training can diverge"
            raise InputError(f"`estimator` 'rotation': {words}: choose straight-through, or `codes_temperature` 0")

    def count_depths(self, moment: Moment) -> torch.Tensor | None:
        """Return how many depths each sample keeps (b,), drawn from the noise of the sample; None for all."""
        if not self.codes_dropout:
            return None
        chance, place = moment.noise.uniforms("codes dropout", 2).unbind(1)
        return torch.where(chance < self.codes_dropout, 1 + (place * self.depths).long(), self.depths)

    def choose(self, grid: int, book: CodebookQuantizer, latents: torch.Tensor, moment: Moment | None) -> torch.Tensor:
        """Return the codes (b, *sites) of residuals (b, D/g, *sites): the nearest, or in training drawn by distance."""
        if moment is None or not self.codes_temperature:
            return super().choose(grid, book, latents, moment)
        rows, sites = rearrange(latents.detach(), "b d ... -> (b ...) d"), latents.shape[2:]
        draws = moment.noise.of("grid", grid).uniforms("codes", *sites)
        entries = book.entries(0).to(rows.dtype)
        return draw_near(rows, entries, book.distance, draws.flatten(), self.codes_temperature).view(-1, *sites)
