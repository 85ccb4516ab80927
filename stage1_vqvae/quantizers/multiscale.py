"""Multi-scale residual quantization (Tian et al. 2024, arXiv 2404.02905): VAR's codes, from one site to a whole grid.

Shapes: b batch, D embedding_dim, *sites one to three axes of the latents, *shape those of a scale's grid, S scales,
n rows of a sample, p num_phi.
"""

import math
from dataclasses import asdict
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from codegrid.codes import Codes, Grid, Layout, Losses, Moment, Sides
from codegrid.errors import InputError
from codegrid.limits import split_options
from codegrid.protocols import Quantized
from codegrid.scales import Phi, add_up, refine, shapes_of, shrink
from codegrid.stage1_vqvae.options import MultiscaleOptions

from .estimators import ESTIMATORS
from .multi_codebook import at_least_float32, codebook_class


class Found(NamedTuple):
    """Codes of latents, and what led to them."""

    codes: Codes  # (b, *shape) of each scale
    rests: list[torch.Tensor]  # (b, D, *shape) of each scale: what its codes were chosen for
    sums: list[torch.Tensor]  # (b, D, *sites) f̂_1 ... f̂_S, with the gradient of φ
    losses: list[Losses]  # the codebook's, of each scale


class MultiscaleQuantizer(nn.Module):
    """One codebook for grids of growing scales, each of which quantizes what the coarser ones left over.

    f̂_0 = 0,   k_s = nearest(shrink_s(z − f̂_{s−1})),   f̂_s = f̂_{s−1} + φ_s(enlarge(e_{k_s})),   z_q = f̂_S

    φ(x) = (1 − ρ) x + ρ (weight ∗ x + bias), 3×3, repairs what enlarging has blurred; with three axes, frame by frame.
    It learns from the gradient of z_q and from mean_s ‖f̂_s − sg[z]‖². The codebook learns as its kind does, from the
    shrunk rests of all scales at once; each scale counts as much as any other.

    Args:
        scales: S growing sides, of the longer axis; the last one is the side of the latents in training. For latents of
            another size they keep their proportions. None: 1 2 4 ... up to that side.
        codebook: name of the quantizer that learns the codebook.
        num_phi: p.
        phi_share: ρ.
        options: those of the codebook's quantizer.

    Raises `InputError` if an option is unknown or a value is out of range.

    Worked example: latents (8, 64, 7, 7) → vectors (8, 64, 7, 7), codes ((8, 1, 1), (8, 2, 2), (8, 4, 4), (8, 7, 7)).
    """

    options: ClassVar[type] = MultiscaleOptions

    def __init__(self, **options: Any) -> None:
        super().__init__()
        settings, of_book = split_options(self.options, options, type(self).__name__)
        self.book = codebook_class(settings.codebook)(**of_book)
        self.config: dict[str, Any] = asdict(settings) | self.book.config
        self.config["scales"] = settings.scales and list(settings.scales)
        self.embedding_dim: int = self.book.embedding_dim
        self.phi_share: float = settings.phi_share
        # one tensor for all: one of several that a small grid leaves unused would stop training in several processes
        weight = torch.zeros(settings.num_phi, self.embedding_dim, self.embedding_dim, 3, 3, dtype=torch.float32)
        self.phi_weight = nn.Parameter(weight + _identity(weight))  # φ(x) = x, until it has learnt better
        self.phi_bias = nn.Parameter(torch.zeros(settings.num_phi, self.embedding_dim, dtype=torch.float32))
        self._is_settled = False
        self._waiting: list[torch.Tensor] = []  # latents (b, D, *sites) for k-means

    def layout(self, sites: Sides) -> Layout:
        """Return the grid of each scale for latents with these sites.

        The first call is for the sites of training. It sets the scales if none were given.

        Raises `InputError` if the given scales do not end with the side of these sites.
        """
        if not self._is_settled:
            scales, side = self._scales_for(sites), max(sites)
            if scales[-1] != side:
                words = f"the last one must be {side}, the side of the code grid, as in {_in_words(_doubling(side))}"
                raise InputError(f"`scales` {_in_words(scales)}: {words}")
            self.config["scales"], self._is_settled = list(scales), True
        return tuple(Grid(shape, self.book.num_embeddings) for shape in self._shapes(sites))

    def forward(self, latents: torch.Tensor, moment: Moment | None = None) -> Quantized:
        """Return vectors, codes and losses of latents (b, D, *sites); with a moment, note rests for `after_step`."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = at_least_float32(latents)
            found = self._find(latents)
            if moment is not None and moment.step < self.book.kmeans_steps:
                self._waiting.append(latents.detach())
            elif moment is not None:
                self.book.observe(*_as_rows(found))
            # the gradient goes to the latents once, for the whole sum, and to φ, which computed the sum
            passed = ESTIMATORS[self.config["estimator"]](latents, found.sums[-1].detach())
            vectors = _Both.apply(found.sums[-1], passed).to(self.phi_weight.dtype)
            return Quantized(vectors, found.codes, self._losses(latents, found))

    @torch.no_grad()
    def encode(self, latents: torch.Tensor) -> Codes:
        """Return the codes (b, *shape) int64 of each scale of latents (b, D, *sites), without changing any state."""
        with torch.autocast(latents.device.type, enabled=False):
            return self._find(at_least_float32(latents)).codes

    def look_up(self, codes: Codes) -> torch.Tensor:
        """Return the sum (b, D, *sites) of the enlarged vectors of codes (b, *shape), as fine as the last grid.

        Raises `InputError` if the grids are not scales of one another.
        """
        shapes = self._shapes(tuple(codes[-1].shape[1:]))
        found = [tuple(of_scale.shape[1:]) for of_scale in codes]
        if found != shapes:
            given, needed = (", ".join("×".join(map(str, shape)) for shape in each) for each in (found, shapes))
            raise InputError(f"`codes` of {given}: grids that end so must be of {needed}")
        vectors = [self.book.look_up((of_scale,)).detach() for of_scale in codes]
        return add_up(vectors, shapes, self._phi()).to(self.phi_weight.dtype)

    def entries(self, grid: int) -> torch.Tensor:
        """Return the codebook (K, D), the same for all scales."""
        return self.book.entries(0)

    def tables(self) -> dict[str, torch.Tensor]:
        """Return φ as `codegrid.scales.Phi` has it: `phi.weight` (p, D, D, 3, 3) and `phi.bias` (p, D)."""
        return {f"phi.{name}": tensor.detach() for name, tensor in self._phi()._asdict().items()}

    @torch.no_grad()
    def after_step(self, step: int, seed: int, *purpose: str | int) -> None:
        """Move the codebook once, by the rests of all scales together."""
        if step < self.book.kmeans_steps:
            self._start(step, seed, *purpose)
        else:
            self.book.after_step(step, seed, *purpose)

    def _start(self, step: int, seed: int, *purpose: str | int) -> None:
        """Set the codebook by k-means of the rests; at first scale by scale, because rests depend on the codebook."""
        waiting, self._waiting = self._waiting, []
        latents = torch.cat(waiting) if waiting else self.entries(0)[:0, :, None]
        count = len(self._shapes(tuple(latents.shape[2:])))
        for scales in range(count if step else 1, count + 1):
            found = self._find(latents)
            self.book.observe(*_as_rows(found, scales))
            self.book.after_step(step, seed, *purpose, "scales", scales)

    def _find(self, latents: torch.Tensor) -> Found:
        """Quantize latents (b, D, *sites), the coarsest scale first."""
        shapes, phi = self._shapes(tuple(latents.shape[2:])), self._phi()
        found, codes = Found((), [], [], []), cast(Codes, ())
        rest, total = latents.detach(), cast("torch.Tensor | None", None)
        for number, shape in enumerate(shapes):
            found.rests.append(shrink(rest, shape))
            of_scale = self.book(found.rests[-1])
            codes += of_scale.codes
            # detached: the codebook learns by its kind's own loss
            total = refine(total, of_scale.vectors.detach(), number, shapes, phi)
            found.sums.append(total)
            found.losses.append(of_scale.losses)
            rest = latents.detach() - total.detach()
        return found._replace(codes=codes)

    def _losses(self, latents: torch.Tensor, found: Found) -> Losses:
        """Return mean_s ‖f̂_s − sg[z]‖² and β mean_s ‖z − sg[f̂_s]‖², as in VAR, and the mean of the codebook's terms."""
        terms: dict[str, torch.Tensor] = {}
        for total, losses in zip(found.sums, found.losses, strict=True):
            own = losses.terms | {
                "commitment_loss": self.book.commitment_cost * F.mse_loss(latents, total.detach()),
                "phi_loss": F.mse_loss(total, latents.detach()),
            }
            terms = {name: terms.get(name, 0) + term / len(found.sums) for name, term in own.items()}
        return Losses(terms, {})

    def _phi(self) -> Phi:
        """Return φ with ρ multiplied out."""
        weight, bias = at_least_float32(self.phi_weight), at_least_float32(self.phi_bias)
        kept = (1 - self.phi_share) * _identity(weight)
        return Phi(kept + self.phi_share * weight, self.phi_share * bias)

    def _scales_for(self, sites: Sides) -> list[int]:
        """Return the given scales, or else those for latents with these sites."""
        return self.config["scales"] or _doubling(max(sites))

    def _shapes(self, sites: Sides) -> list[Sides]:
        return shapes_of(sites, self._scales_for(sites))


class _Both(torch.autograd.Function):
    """Function that returns the first of two equal tensors, and passes the gradient to both."""

    @staticmethod
    def forward(ctx: Any, total: torch.Tensor, passed: torch.Tensor) -> torch.Tensor:
        return total.view_as(total)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return gradient, gradient


def _as_rows(found: Found, scales: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rests (b·n, D) and codes (b·n,) of the first scales, each once for every site of the latents below it.

    So all scales count alike, in revival too: counted once, the coarse rests would be too few to get entries of their
    own. The rows go sample by sample, so pieces of a batch, and batches of several processes, follow one another.
    """
    sites = tuple(found.sums[0].shape[2:])
    above = [_sites_above(tuple(rest.shape[2:]), sites, rest.device) for rest in found.rests[:scales]]
    rests = [rest.flatten(2)[:, :, numbers] for rest, numbers in zip(found.rests, above, strict=False)]
    codes = [of_scale.flatten(1)[:, numbers] for of_scale, numbers in zip(found.codes, above, strict=False)]
    return rearrange(torch.cat(rests, dim=2), "b d n -> (b n) d"), torch.cat(codes, dim=1).flatten()


def _sites_above(shape: Sides, sites: Sides, device: torch.device) -> torch.Tensor:
    """Return, for each site, the number of the coarser grid's site that covers it."""
    numbers = torch.arange(math.prod(shape), dtype=torch.float32, device=device).view(1, 1, *shape)
    return F.interpolate(numbers, sites, mode="nearest-exact").flatten().long()


def _identity(weight: torch.Tensor) -> torch.Tensor:
    """Return the kernel (D, D, 3, 3) of a convolution (p, D, D, 3, 3) that changes nothing."""
    middle = F.pad(torch.ones(1, 1, dtype=weight.dtype, device=weight.device), (1, 1, 1, 1))
    return torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)[:, :, None, None] * middle


def _doubling(side: int) -> list[int]:
    """Return the powers of two below a side, and the side."""
    return [2**power for power in range(side.bit_length()) if 2**power < side] + [side]


def _in_words(scales: list[int]) -> str:
    return " ".join(map(str, scales))
