"""A quantizer, a tokenizer and a prior of somebody else's, as small as they can be: two grids of signs of a linear map.

`tests/test_registry.py` copies this file out of the project and drives every command with it.
"""

import math
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
from torch import nn

from codegrid import Grid, Signal, register
from codegrid.codes import Losses
from codegrid.limits import Range, make_options
from codegrid.model_folder import ModelFolder
from codegrid.protocols import NO_CONDITION, Quantized, Reconstructed
from codegrid.registry import TABLES
from codegrid.stage2_prior.conditions import Conditions
from codegrid.stage2_prior.sampling.sequential import PlainSteps, sample_sequential, site_by_site


@dataclass(frozen=True)
class SignOptions:
    """Options of the sign quantizer."""

    sign_bits: Annotated[int, Range(1, 10)] = 2
    """Bits of a code; there are two codes at each site."""


class SignQuantizer(nn.Module):
    """Each latent's signs, the first half of them one code and the second half another."""

    options = SignOptions

    def __init__(self, **options):
        super().__init__()
        self.config = asdict(make_options(SignOptions, options, "the sign quantizer"))
        self.bits = self.config["sign_bits"]
        self.embedding_dim = 2 * self.bits

    def layout(self, sites):
        return (Grid(sites, 2**self.bits),) * 2

    def forward(self, latents, moment=None):
        vectors = latents + (latents.sign() - latents).detach()
        commitment = (latents - latents.sign().detach()).square().mean()
        return Quantized(vectors, self.encode(latents), Losses({"commitment_loss": commitment}, {}))

    def encode(self, latents):
        powers = 2 ** torch.arange(self.bits, device=latents.device).reshape(1, -1, 1, 1)
        return tuple(((half > 0) * powers).sum(1) for half in latents.chunk(2, dim=1))

    def look_up(self, codes):
        return torch.cat([self._signs(grid) for grid in codes], dim=1)

    def entries(self, grid):
        return self._signs(torch.arange(2**self.bits).reshape(-1, 1, 1)).flatten(1)

    def after_step(self, step, seed, *purpose):
        pass

    def _signs(self, grid):
        """(b, h, w) → (b, bits, h, w) of -1 and 1."""
        return torch.stack([(grid >> bit & 1) * 2.0 - 1 for bit in range(self.bits)], dim=1)


@dataclass(frozen=True)
class PatchOptions:
    """Options of the patch tokenizer."""

    patch: Annotated[int, Range(1, 64)] = 4
    """Pixels of a patch's side."""


class PatchTokenizer(ModelFolder, nn.Module):
    """A linear map of each patch, quantized, and a linear map back."""

    kind, options = "tokenizer", PatchOptions

    def __init__(self, signal, data_variance=1.0, quantizer="own-sign", **options):
        super().__init__()
        self.signal = signal if isinstance(signal, Signal) else Signal(**signal)
        self.patch = options.pop("patch", 4)
        self.quantizer = TABLES["quantizer"][quantizer](**options)
        self.data_variance = data_variance
        self.to_latents = nn.Conv2d(self.signal.channels, self.quantizer.embedding_dim, self.patch, self.patch)
        self.to_pixels = nn.ConvTranspose2d(self.quantizer.embedding_dim, self.signal.channels, self.patch, self.patch)
        self.layout = self.quantizer.layout(tuple(side // self.patch for side in self.signal.size))
        self.config = {"signal": self.signal.as_json(), "data_variance": data_variance, "quantizer": quantizer,
                       "patch": self.patch, **self.quantizer.config}  # fmt: skip
        self.provenance = {}

    def forward(self, x, given=NO_CONDITION, moment=None):
        vectors, codes, losses = self.quantizer(self.to_latents(x), moment)
        output = self.to_pixels(vectors)
        error = (output - x).square().mean() / self.data_variance
        return Reconstructed(output, codes, Losses({"reconstruction_loss": error, **losses.terms}, {}))

    @torch.no_grad()
    def encode(self, x):
        return self.quantizer.encode(self.to_latents(x))

    @torch.no_grad()
    def decode(self, codes, size=None, given=NO_CONDITION, noise=None):
        return self.to_pixels(self.quantizer.look_up(codes))

    def reconstruct(self, x):
        return self.decode(self.encode(x))

    def encode_latents(self, x):
        return (self.to_latents(x),)

    def decode_latents(self, latents, quantize):
        return self.to_pixels(latents[0].sign() if quantize else latents[0])

    def nll(self, x, codes, given=NO_CONDITION):
        return None

    def preview(self, codes, drawn):
        whole = torch.stack(drawn).all(0).float().repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)
        return self.decode(codes) * whole[:, None]

    def kept_sites(self, mask):
        blocks = mask.unflatten(0, (-1, self.patch)).unflatten(2, (-1, self.patch))
        return (blocks.all(3).all(1),) * len(self.layout)

    def after_step(self, step, seed):
        self.quantizer.after_step(step, seed)


@dataclass(frozen=True)
class CountOptions:
    """Options of the counting prior."""

    smoothing: Annotated[float, Range(0, 10)] = 0.0
    """How even the probabilities are made."""


class CountingPrior(ModelFolder, nn.Module):
    """Probabilities of each code at each site for each class, whatever the other codes are."""

    kind, options = "prior", CountOptions
    likelihood, keeps, given_grids = "exact", "first", ()
    controls = frozenset({"temperature", "top_k", "top_p"})

    def __init__(self, layout, grids=None, num_classes=0, smoothing=0.0):
        super().__init__()
        self.layout = tuple(grid if isinstance(grid, Grid) else Grid(**grid) for grid in layout)
        self.grids = tuple(range(len(self.layout)) if grids is None else grids)
        self.num_classes, self.smoothing = num_classes, smoothing
        self.tables = nn.ParameterList(
            torch.zeros(max(1, num_classes), grid.num_embeddings, *grid.shape) for grid in self.layout
        )
        self.config = {"layout": [grid.as_json() for grid in self.layout], "grids": list(self.grids),
                       "num_classes": num_classes, "smoothing": smoothing}  # fmt: skip
        self.provenance = {}

    @property
    def conditions(self):
        return Conditions(self.num_classes, tuple(self.provenance.get("classes", ())), False)

    def logits(self, codes, given=NO_CONDITION):
        rows = self.conditions.rows(given, len(codes[0]), self.device)
        rows = torch.zeros(len(codes[0]), dtype=torch.int64, device=self.device) if rows is None else rows
        return tuple(table[rows] / (1 + self.smoothing) for table in self.tables)

    def forward(self, codes, given=NO_CONDITION, moment=None):
        nats = torch.cat([grid.flatten(1) for grid in self._nats(codes, given)], dim=1).mean()
        return Losses({"nll": nats}, {"bits_per_code": nats.detach() / math.log(2)})

    @torch.no_grad()
    def nll(self, codes, given=NO_CONDITION, noise=None, num_inference_steps=None):
        return self._nats(codes, given)

    def _nats(self, codes, given):
        pairs = zip(self.logits(codes, given), codes, strict=True)
        return tuple(nn.functional.cross_entropy(logits, grid, reduction="none") for logits, grid in pairs)

    def steps(self, given, batch_size, backend="auto"):
        return PlainSteps(self, given, batch_size, site_by_site(self.layout))

    def sample(self, given, noise, config, known=None, backend="auto", watch=False):
        return sample_sequential(self, given, noise, config, known, backend, watch)


register("quantizer", "own-sign", SignQuantizer)
register("tokenizer", "own-patch", PatchTokenizer)
register("prior", "own-count", CountingPrior)
