"""The online clustered codebook (CVQ-VAE: Zheng and Vedaldi 2023, arXiv 2307.15139)."""

from typing import Any

import torch

from codegrid.limits import check_name, short

from .anchors import ANCHORS
from .base import Quantizer
from .ema import EMAQuantizer
from .gradient import GradientQuantizer

LEAST_SHARE = 1e-6  # an entry that would move by less stays where it is, bit for bit


class Clustered(Quantizer):
    """Moves each entry toward an anchor among the latents, the further the less it is used.

    u_k ← γ u_k + (1−γ) n_k / n,   a_k = exp(−u_k · K · 10/(1−γ) − ε),   e_k ← (1−a_k) e_k + a_k · anchor_k

    It is mixed into a quantizer that learns its codebook, which goes on doing so.

    Args:
        anchors: `random` latents of a pool, the `closest` latent, or one drawn by distance, `probabilistic`.
        anchor_once: move entries in the first step only.
        options: those of every quantizer. Revival is off by default over EMA, where unused entries move anyhow.

    Worked example: latents (8, 64, 7, 7) with num_embeddings=512, embedding_dim=64
    → vectors (8, 64, 7, 7), codes (8, 7, 7) in 0 ... 511, loss ().
    """

    default_revival = 0.0

    def __init__(
        self,
        num_embeddings: int = 512,
        embedding_dim: int = 64,
        anchors: str = "probabilistic",
        anchor_once: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, **options)
        check_name("anchors", anchors, ANCHORS)
        if not isinstance(anchor_once, bool):
            raise ValueError(f"anchor_once {short(anchor_once)}: it must be true or false")
        self.anchor_once = anchor_once
        self.anchors = ANCHORS[anchors](num_embeddings, embedding_dim, self.distance)
        self.register_buffer("running_usage", torch.zeros(num_embeddings))  # u_k: shares, from 0

    def _start_with_kmeans(self, latents: torch.Tensor, step: int) -> None:
        super()._start_with_kmeans(latents, step)
        self.running_usage.copy_(self.running_hits / self.running_hits.sum())

    def _update_codebook(self, latents: torch.Tensor, hits: torch.Tensor, sums: torch.Tensor, step: int) -> None:
        super()._update_codebook(latents, hits, sums, step)
        self.running_usage.mul_(self.decay).add_(hits / hits.sum(), alpha=1 - self.decay)
        if self.anchor_once and step > self.kmeans_steps:
            return
        shares = torch.exp(-self.running_usage * self.num_embeddings * 10 / (1 - self.decay) - 1e-3)
        moved = (shares > LEAST_SHARE).nonzero().flatten()
        anchors = self.anchors(latents, self.codebook.detach(), moved, step)
        self.codebook.data[moved] = self.codebook.detach()[moved].lerp(anchors, shares[moved, None])


class ClusteredQuantizer(Clustered, EMAQuantizer):
    """The clustered codebook whose used entries are moving averages."""


class ClusteredGradientQuantizer(Clustered, GradientQuantizer):
    """The clustered codebook whose used entries the optimizer moves.

    Revival is on by default: an entry that was hit once stays where it is for some hundred steps, and in the first
    steps gradients alone do not carry it after the latents.
    """

    default_revival = Quantizer.default_revival
