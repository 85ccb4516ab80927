"""Binary codes without a codebook, one bit per number of a latent: lookup-free and binary spherical quantization.

Shapes: b batch, D embedding_dim, which is the number of bits, *sites one to three axes of the code grids, n sites of
this process, K num_embeddings = 2ᴰ.
"""

from dataclasses import asdict
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from codegrid.codes import Losses
from codegrid.limits import make_options
from codegrid.stage1_vqvae.options import BSQOptions, LFQOptions

from .entropy import entropy_of_mean, mean_entropy
from .lattice import LatticeQuantizer

SHORTEST = 1e-6  # length of a latent below which it no longer has a direction


class LFQuantizer(LatticeQuantizer):
    """Lookup-free quantization (Yu et al. 2023, arXiv 2310.05737): q = sign(z), and sign(0) is +1.

    There is no codebook to move. Instead, two entropies in the loss keep all codes in use, and each site near one code:

    λ (mean H(p(c|z)) − γ H(mean p(c|z))),   p(c|z) ∝ exp(−‖z − c‖²/τ)

    Args:
        num_embeddings: K, a power of two; D is its logarithm.
        num_factors: grids that share the code, each with some of the bits; by default as few as have at most 2¹²
            codes each.
        entropy_weight: λ; with 0 the entropies are not computed.
        diversity_gamma: γ.
        entropy_temperature: τ.
        commitment_cost: β of β ‖z − sg[q]‖², which holds the latents near ±1.

    Raises `InputError` if an option is unknown or a value is out of range.

    Worked example: latents (8, 18, 7, 7) with num_embeddings=2**18
    → vectors (8, 18, 7, 7) of ±1, codes ((8, 7, 7), (8, 7, 7)) in 0 ... 511.
    """

    options: ClassVar[type] = LFQOptions
    length: float  # of each number of a vector

    def __init__(self, **options: Any) -> None:
        settings = make_options(self.options, options, type(self).__name__)
        super().__init__((2,) * (settings.num_embeddings.bit_length() - 1), settings.num_factors)
        self.config = asdict(settings) | {"num_factors": len(self.factors.groups)}
        self.commitment_cost: float = settings.commitment_cost
        self.entropy_weight: float = settings.entropy_weight
        self.diversity_gamma: float = settings.diversity_gamma
        self.entropy_temperature: float = settings.entropy_temperature
        self.length = 1.0

    def _round(self, points: torch.Tensor) -> torch.Tensor:
        """(b, *sites, D) → bits, 0 or 1, as floats; 1 where a point is 0."""
        return (points >= 0).to(points.dtype)

    def _vectors(self, digits: torch.Tensor) -> torch.Tensor:
        """Bits (b, *sites, D) → ±1, or that over √D."""
        return (2 * digits - 1) * self.length

    def _losses(self, points: torch.Tensor, vectors: torch.Tensor, is_joint: bool) -> Losses:
        """Return commitment and entropy terms, and as figures both entropies in nats."""
        terms = {"commitment_loss": self.commitment_cost * F.mse_loss(points, vectors)}
        if not self.entropy_weight:
            return Losses(terms, {})
        # the two values of bit i change −‖z − c‖²/τ by 4 |c_i| z_i / τ
        log_odds = points.flatten(0, -2) * (4 * self.length / self.entropy_temperature)
        of_sites, of_all = mean_entropy(log_odds), entropy_of_mean(log_odds, is_joint)
        terms["entropy_loss"] = self.entropy_weight * (of_sites - self.diversity_gamma * of_all)
        return Losses(terms, {"batch_site_entropy": of_sites, "batch_code_entropy": of_all})


class BSQuantizer(LFQuantizer):
    """Binary spherical quantization (Zhao et al. 2024, arXiv 2406.07548): u = z/‖z‖, q = sign(u)/√D, sign(0) is +1.

    The loss terms are those of lookup-free quantization, with u instead of z. The entropy of the mean is that of whole
    codes: the paper's sum over groups of bits can be large even if few codes are used.

    Args: as `LFQuantizer`.

    Worked example: latents (8, 9, 7, 7) with num_embeddings=512
    → vectors (8, 9, 7, 7) of ±1/3, codes ((8, 7, 7),) in 0 ... 511.
    """

    options: ClassVar[type] = BSQOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.length = self.embedding_dim**-0.5

    def _points(self, latents: torch.Tensor) -> torch.Tensor:
        """(b, D, *sites) → (b, *sites, D) of length 1."""
        return F.normalize(super()._points(latents), dim=-1, eps=SHORTEST)
