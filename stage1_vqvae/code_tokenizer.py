"""A VQ-VAE over the codes of another tokenizer (van den Oord et al. 2017, section 4.2): codes → a few codes → codes.

Its decoder is a prior of the table, conditioned on the latents, and draws. Three latents with codebooks of 512 entries,
the default, are 27 bits for an image.

Shapes: b batch, h w code grid of the tokenizer below, D embedding_dim of all latents together, K num_embeddings; codes
of the tokenizer below (b, h, w), one tensor for each grid; its own codes (b, 1, 1), one tensor for each latent.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from codegrid.codes import (
    HIDDEN,
    Codes,
    Condition,
    Grid,
    Latents,
    Layout,
    Losses,
    Moment,
    Sides,
    Signal,
    describe_layout,
    make_layout,
)
from codegrid.errors import InputError
from codegrid.limits import make_options, split_options
from codegrid.model_folder import ModelFolder
from codegrid.noise import Noise
from codegrid.protocols import NO_CONDITION, Reconstructed
from codegrid.registry import TABLES
from codegrid.sampling_config import SamplingConfig
from codegrid.tensors import check_codes

from .code_networks import CodeEncoder, CodeHead
from .image_tokenizer import fill_in
from .options import CodesOptions
from .quantizers.codebook import CodebookQuantizer

DIGITS = (Grid((7, 7), 512),)


class CodeTokenizer(ModelFolder, nn.Module):
    """A VQ-VAE over codes: it turns the codes of another tokenizer into a few codes, and draws codes from those.

    Args:
        over: the grids of the tokenizer below, all of one shape (h, w); as `Grid`s, or as their JSON values.
        quantizer: a name in `QUANTIZERS`. A quantizer of one codebook gives each latent a codebook of its own; any
            other one quantizes the latents together.
        options: those of `CodesOptions`; those of the prior that `decoder` names; and those of the quantizer, whose
            `embedding_dim` is that of a single latent if each has a codebook of its own.

    Raises `InputError` if an option is unknown or a value is out of range, if the grids are of several shapes, or if
    the prior cannot be conditioned on latents.

    Examples:
        >>> model = CodeTokenizer([Grid((7, 7), 512)], channels=8, num_layers=2).eval()
        >>> codes = model.encode((torch.zeros(2, 7, 7, dtype=torch.int64),))
        >>> [tuple(of_latent.shape) for of_latent in codes]
        [(2, 1, 1), (2, 1, 1), (2, 1, 1)]
        >>> (drawn,) = model.decode(codes)
        >>> drawn.shape
        torch.Size([2, 7, 7])
    """

    kind: ClassVar[str] = "tokenizer"
    options: ClassVar[type] = CodesOptions
    learns: ClassVar[str] = "codes"

    def __init__(self, over: Sequence[Grid | dict[str, Any]] = DIGITS, quantizer: str = "ema", **options: Any) -> None:
        super().__init__()
        self.over = make_layout(over)
        if len({grid.shape for grid in self.over}) != 1 or len(self.over[0].shape) != 2:
            words = "a tokenizer over codes needs grids (h, w) of one shape: choose other codes"
            raise InputError(f"`over` {describe_layout(self.over) if self.over else 'no grid'}: {words}")
        settings, others = split_options(self.options, options, "CodeTokenizer")
        TABLES["prior"].check(settings.decoder, "decoder")
        names = {field.name for field in fields(TABLES["prior"].options(settings.decoder))}
        of_decoder = {name: value for name, value in others.items() if name in names}
        of_quantizer = {name: value for name, value in others.items() if name not in names}

        self.quantizer, kept = make_quantizer(quantizer, settings.num_latents, of_quantizer)
        width = self.quantizer.embedding_dim
        self.encoder = CodeEncoder(self.over, settings.hidden_channels, width)
        self.decoder = make_decoder(settings.decoder, self.over, width, of_decoder)
        self.reconstruction_weight: float = settings.reconstruction_weight
        self.auxiliary_weight: float = settings.auxiliary_weight
        self.auxiliary = CodeHead(self.over, settings.hidden_channels, width) if self.auxiliary_weight else None
        self.layout: Layout = self.quantizer.layout((1, 1))
        self.signal = Signal("codes", len(self.over), self.over[0].shape)
        self.config = {
            "over": [grid.as_json() for grid in self.over],
            "quantizer": quantizer,
            **asdict(settings),
            **{name: value for name, value in self.decoder.config.items() if name in names},
            **kept,
        }
        self.provenance: dict[str, Any] = {}

    def forward(self, x: Codes, given: Condition = NO_CONDITION, moment: Moment | None = None) -> Reconstructed:
        """Return codes and losses for the codes (b, h, w) of each grid below; `given` is not used, the output is empty.

        The terms are those of Eq. 3, all divided by D: the quantizer's are means over the elements of its latents.
        """
        return self.reconstruct_from(self.encoder(x), x, moment)

    def reconstruct_from(self, latents: torch.Tensor, x: Codes, moment: Moment | None = None) -> Reconstructed:
        """Run the rest of the training pass, from the latents (b, D, 1, 1) of codes x (b, h, w) of each grid below."""
        vectors, codes, losses = self.quantizer(latents, moment)
        nats = self.decoder(x, Condition(features=(vectors,)), moment).total * self.num_codes
        scale = self.reconstruction_weight / self.quantizer.embedding_dim
        terms = {"reconstruction_loss": scale * nats}
        if self.auxiliary is not None:
            alone = sum(_nats(*pair) for pair in zip(self.auxiliary(vectors), x, strict=True)) / len(vectors)
            terms["auxiliary_loss"] = scale * self.auxiliary_weight * alone
        figures = {"bits_per_code": nats.detach() / self.num_codes / math.log(2)}
        return Reconstructed((), codes, Losses({**terms, **losses.terms}, {**figures, **losses.figures}))

    @property
    def num_codes(self) -> int:
        """The number of codes of the tokenizer below, over all of its grids."""
        return sum(grid.num_sites for grid in self.over)

    @torch.no_grad()
    def encode(self, x: Codes) -> Codes:
        """Return the codes (b, 1, 1) int64, one tensor for each latent, of codes (b, h, w) of each grid below.

        Raises `InputError` if x are not codes of these grids.
        """
        (latents,) = self.encode_latents(x)
        return self.quantizer.encode(latents)

    @torch.no_grad()
    def decode(
        self, codes: Codes, size: Sides | None = None, given: Condition = NO_CONDITION, noise: Noise | None = None
    ) -> Codes:
        """Draw codes (b, h, w) of each grid below, given the codes (b, 1, 1) of each latent. Needs eval mode.

        `noise` is what they are drawn with, by default that of seed 0; `size` and `given` are not used.

        Raises `InputError` if these are not codes of this tokenizer.
        """
        return self.draw(self._look_up(codes), noise)

    @torch.no_grad()
    def draw(self, vectors: torch.Tensor, noise: Noise | None = None) -> Codes:
        """Draw codes (b, h, w) of each grid below, given vectors (b, D, 1, 1), with noise, by default of seed 0."""
        noise = noise or Noise(0, 0, len(vectors), self.device)
        *_, last = self.decoder.sample(Condition(features=(vectors,)), noise, SamplingConfig())
        return last.codes

    def reconstruct(self, x: Codes) -> Codes:
        """Return codes drawn for the latents of codes x (b, h, w) of each grid below, with the noise of seed 0."""
        return self.decode(self.encode(x))

    def encode_latents(self, x: Codes) -> Latents:
        """Return the latents (b, D, 1, 1) of codes (b, h, w) of each grid below, of the one level, with gradient.

        Raises `InputError` if x are not codes of these grids.
        """
        check_codes("x", x, self.over)
        return (self.encoder(tuple(grid.long() for grid in x)),)

    def decode_latents(self, latents: Latents, quantize: bool) -> Codes:
        """Draw codes (b, h, w) of each grid below for latents (b, D, 1, 1), quantized first if `quantize`."""
        (only,) = latents
        return self.draw(self.quantizer(only).vectors if quantize else only)

    @torch.no_grad()
    def nll(self, x: Codes, codes: Codes, given: Condition = NO_CONDITION) -> torch.Tensor:
        """Return −log p(x | codes), (b,) in nats, of the codes x (b, h, w) below, given this tokenizer's (b, 1, 1)."""
        check_codes("x", x, self.over)
        nats = self.decoder.nll(tuple(grid.long() for grid in x), Condition(features=(self._look_up(codes),)))
        assert nats is not None  # `make_decoder` takes no other prior
        return torch.stack([grid.flatten(1).sum(1) for grid in nats]).sum(0)

    def preview(self, codes: Codes, drawn: tuple[torch.Tensor, ...]) -> Codes:
        """Return codes (b, h, w) of each grid below of an unfinished draw, HIDDEN where no latent is drawn.

        The latents that are not drawn add as little as possible.
        """
        below = self.decode(fill_in(self.quantizer, codes, drawn))
        return tuple(torch.where(torch.stack(drawn).any(0), grid, HIDDEN) for grid in below)

    def kept_sites(self, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return, for each latent, whether (1, 1) bool known sites (h, w) bool determine it: only all of them do."""
        return tuple(mask.bool().all().view(1, 1) for _ in self.layout)

    def after_step(self, step: int, seed: int) -> None:
        """Move the codebooks, once for all pieces of a step."""
        self.quantizer.after_step(step, seed)

    def _look_up(self, codes: Codes) -> torch.Tensor:
        check_codes("codes", codes, self.layout)
        return cast(torch.Tensor, self.quantizer.look_up(tuple(grid.long() for grid in codes)))


def make_quantizer(name: str, num_latents: int, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a quantizer of the latents, and the options that rebuild it.

    Of a quantizer with one codebook, each latent has its own.
    """
    TABLES["quantizer"].check(name)
    cls = TABLES["quantizer"][name]
    if not issubclass(cls, CodebookQuantizer):
        whole = cls(**options)
        return whole, getattr(whole, "config", options)
    width = make_options(cls.options, options, cls.__name__).embedding_dim
    of_all = {**options, "embedding_dim": num_latents * width}
    quantizer = TABLES["quantizer"]["product"](num_quantizers=num_latents, codebook=name, **of_all)
    own = {field.name for field in fields(cls.options)}
    return quantizer, {k: v for k, v in quantizer.config.items() if k in own} | {"embedding_dim": width}


def make_decoder(name: str, layout: Layout, width: int, options: dict[str, Any]) -> Any:
    """Return a prior of the table over these grids, conditioned on features of `width` channels.

    Raises `InputError` if such a prior takes no features, or has no exact likelihood.
    """
    cls: Any = TABLES["prior"][name]
    if "given_features" not in inspect.signature(cls).parameters or cls.likelihood != "exact":
        words = "such a prior cannot be conditioned on latents: choose another, for example pixelcnn"
        raise InputError(f"`decoder` {name}: {words}")
    return cls(layout=layout, given_features=width, **options)


def _nats(logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return −Σ log p of codes (b, h, w) under logits (b, K, h, w), in float32 at least."""
    exact = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(exact), codes, reduction="sum")
