"""The Gumbel-softmax quantizer of the discrete VAE (Jang et al. 2016, arXiv 1611.01144; Ramesh et al. 2021,
arXiv 2102.12092): in training it draws mixtures of entries, which become single entries toward the end.

Shapes: b batch, D embedding_dim, *sites one to three axes of the code grid, n how many sites these are, s sites that
are worked on together, K num_embeddings.
"""

import math
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from codegrid.codes import Codes, Grid, Layout, Losses, Moment, Sides
from codegrid.limits import make_options
from codegrid.noise import Noise
from codegrid.protocols import Quantized
from codegrid.stage1_vqvae.options import GumbelOptions

from .estimators import StraightThrough
from .nearest import least_codes, tile_for

COOLING = 0.5  # share of the run in which the temperature goes down
WARMING = 0.05  # share of the run in which the weight of the KL term goes up


class GumbelQuantizer(nn.Module):
    """Entries chosen by logits.

    ℓ = A z + a,   k = argmax ℓ;   in training   y = softmax((ℓ + g) / τ),   z_q = Σ_k y_k e_k

    with Gumbel noise g. Outside of training there is no noise, and vectors are single entries. The codes that training
    returns are without noise too, so the vectors that it returns are not their entries.

    Args:
        num_embeddings: K.
        embedding_dim: D.
        kl_weight: of KL(softmax ℓ ‖ uniform) in nats, a mean over sites. It grows from 0 in the first 5 % of the run.
            β of the discrete VAE, which divides all by the c·H·W numbers of an image with n sites, is
            `kl_weight` · c·H·W / n.
        final_temperature: τ goes down to it from 1 in the first half of the run.
        hard_samples: z_q is the entry with the largest y in training, and only its gradient is that of the mixture.

    Raises `InputError` if an option is unknown or a value is out of range.

    Worked example: latents (8, 64, 7, 7) with num_embeddings=512, embedding_dim=64
    → vectors (8, 64, 7, 7), codes ((8, 7, 7),) in 0 ... 511.
    """

    options: ClassVar[type] = GumbelOptions
    anneals: ClassVar[bool] = True  # each step depends on how many the run has

    def __init__(self, **options: Any) -> None:
        super().__init__()
        settings = make_options(self.options, options, type(self).__name__)
        self.config = asdict(settings)
        self.num_embeddings: int = settings.num_embeddings
        self.embedding_dim: int = settings.embedding_dim
        self.kl_weight: float = settings.kl_weight
        self.final_temperature: float = settings.final_temperature
        self.hard_samples: bool = settings.hard_samples
        self.codebook = nn.Parameter(torch.randn(self.num_embeddings, self.embedding_dim, dtype=torch.float32))
        self.to_logits = nn.Linear(self.embedding_dim, self.num_embeddings, dtype=torch.float32)  # A and a
        with torch.no_grad():
            # ℓ_k = e_k·z at first: from small logits, which favour no entry, only a few ever come into use
            self.to_logits.weight.copy_(self.codebook)
            self.to_logits.bias.zero_()

    def layout(self, sites: Sides) -> Layout:
        """Return the one grid of latents with these sites."""
        return (Grid(sites, self.num_embeddings),)

    def forward(self, latents: torch.Tensor, moment: Moment | None = None) -> Quantized:
        """Return vectors, codes and losses of (b, D, *sites); with a moment, its noise draws the vectors."""
        codes = self.encode(latents)
        with torch.autocast(latents.device.type, enabled=False):
            vectors, kl = self._mix(latents, moment)
            if moment is None:
                vectors = StraightThrough.apply(vectors, self.look_up(codes))
            warm = 1.0 if moment is None else _risen(moment, WARMING)
            losses = Losses(
                {"kl_loss": self.kl_weight * warm * kl},
                {"kl": kl.detach(), "temperature": kl.new_tensor(self.temperature(moment))},
            )
            return Quantized(vectors, codes, losses)

    @torch.no_grad()
    def encode(self, latents: torch.Tensor) -> Codes:
        """Return the codes argmax ℓ, one tensor (b, *sites) int64, of latents (b, D, *sites), without noise."""
        with torch.autocast(latents.device.type, enabled=False):
            rows = rearrange(latents.to(self._exact), "b d ... -> (b ...) d")
            weight, bias = self.to_logits.weight.to(self._exact), self.to_logits.bias.to(self._exact)
            return (least_codes(rows, weight, -bias).view(latents.shape[0], *latents.shape[2:]),)

    def look_up(self, codes: Codes) -> torch.Tensor:
        """Return z_q = e_k (b, D, *sites) for codes, one tensor (b, *sites)."""
        (only,) = codes
        return rearrange(F.embedding(only, self.codebook), "b ... d -> b d ...")

    def entries(self, grid: int) -> torch.Tensor:
        """Return the codebook (K, D)."""
        return self.codebook.detach()

    def soften(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the mixtures Σ_k softmax(ℓ / τ)_k e_k (b, D, *sites) of latents, without noise, at the final τ.

        Their gradient is that of the vectors outside of training.
        """
        return self._mix(latents, None)[0]

    def after_step(self, step: int, seed: int, *purpose: str | int) -> None:
        """Do nothing: the optimizer moves the codebook."""

    def temperature(self, moment: Moment | None) -> float:
        """Return τ, which depends only on how much of the run is done."""
        left = 0.0 if moment is None else 1 - _risen(moment, COOLING)
        return self.final_temperature + (1 - self.final_temperature) * left

    @property
    def _exact(self) -> torch.dtype:
        # probabilities in half precision would not add up
        return torch.promote_types(self.codebook.dtype, torch.float32)

    def _mix(self, latents: torch.Tensor, moment: Moment | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (b, D, *sites) → mixtures of entries (b, D, *sites), and the mean KL () of a site.

        If all logits together would be too large, some sites at a time are computed, and again for the gradient.
        """
        batch, _, *sites = latents.shape
        rows = rearrange(latents.to(self._exact), "b d ... -> b (...) d")
        at_once = max(1, tile_for(latents.device).pairs // (batch * self.num_embeddings))
        mix = self._mix_some
        if rows.shape[1] > at_once:
            anew = {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
            mix = partial(checkpoint, self._mix_some, **anew)
        parts = [mix(some, number * at_once, moment) for number, some in enumerate(rows.split(at_once, 1))]
        mixtures, kl = zip(*parts, strict=True)
        vectors = torch.cat(mixtures, 1).view(batch, *sites, self.embedding_dim)
        return rearrange(vectors, "b ... d -> b d ..."), torch.stack(kl).sum() / rows[..., 0].numel()

    def _mix_some(self, rows: torch.Tensor, first: int, moment: Moment | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (b, s, D) of the sites from number `first` on → mixtures (b, s, D), and the sum of their KL ()."""
        with torch.autocast(rows.device.type, enabled=False):
            weight, bias = self.to_logits.weight.to(rows.dtype), self.to_logits.bias.to(rows.dtype)
            log_p = F.linear(rows, weight, bias).log_softmax(2)  # ℓ up to a constant
            kl = (log_p.exp() * log_p).sum(2) + math.log(self.num_embeddings)
            noisy = log_p if moment is None else log_p + self._noise(rows, first, moment.noise)
            shares = (noisy / self.temperature(moment)).softmax(2)
            if self.hard_samples and moment is not None:
                single = F.one_hot(shares.argmax(2), self.num_embeddings).to(shares.dtype)
                shares = StraightThrough.apply(shares, single)
            return shares @ self.codebook.to(rows.dtype), kl.sum()

    def _noise(self, rows: torch.Tensor, first: int, noise: Noise) -> torch.Tensor:
        """Return −log(−log u) (b, s, K), site by site, so that the numbers do not depend on s."""
        numbers = range(first, first + rows.shape[1])
        uniforms = [noise.of("site", site).uniforms("gumbel", self.num_embeddings) for site in numbers]
        # taken as 1 − u: near 0, where g is large, float32 keeps all digits
        u = torch.stack(uniforms, 1).to(rows.dtype).clamp_(1e-30, 1 - 1e-7)
        return u.neg_().log1p_().neg_().log_().neg_()


def _risen(moment: Moment, share: float) -> float:
    """Return half a cosine: 0 at the first step, 1 once this share of the run is done."""
    return (1 - math.cos(math.pi * min(1.0, moment.step / (share * moment.steps)))) / 2
