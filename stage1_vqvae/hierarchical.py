"""The VQ-VAE-2 (Razavi, van den Oord, Vinyals 2019): image → codes of several grids, coarse to fine → image.

Shapes: b batch, c channels, H W image, L levels, h w the latents of a level, D embedding_dim of a level, K
num_embeddings.
"""

from collections.abc import Callable
from itertools import accumulate, pairwise
from operator import mul
from typing import Any, ClassVar, cast

import torch
from torch import nn

from codegrid.codes import Codes, Latents, Layout, Losses, Moment, Sides, Signal
from codegrid.errors import InputError

from .image_tokenizer import RGB, ImageTokenizer, Pass, crop, pad
from .options import HierarchicalOptions
from .quantizers.levels import LevelQuantizers

Quantize = Callable[[int, torch.Tensor], torch.Tensor]  # level, latents (b, D, h, w) → vectors (b, D, h, w)


class HierarchicalVQVAE(ImageTokenizer):
    """A VQ-VAE-2: codes in grids from coarse to fine, each of which is chosen knowing the coarser ones.

    Encoders shrink the image step by step. Then, from the coarsest level on, latents are computed from the encoder's
    features and from a decoder of the codes above; the last decoder sees the codes of all levels. Codes of an image do
    not depend on its batch.

        f_i = E_i(f_{i+1}),   z_i = W_i [f_i, D_{i−1}(c_{i−1})],   c_i = [Q_i(z_i), enlarge_i(c_{i−1})]
        x̂ = D_{L−1}(c_{L−1})

    for i = 0, the coarsest level, to L−1, where f_L is the image. The loss is that of the VQ-VAE (Eq. 3), with the
    quantizers' terms of all levels added up.

    Args:
        signal: channels, 1 or 3, and size (H, W) of the images that it is trained on; `decode` returns this size. A
            dict of its fields is accepted, too.
        data_variance: variance of the training images, in the range [-1, 1]; scales the reconstruction term.
        quantizer: a name in `QUANTIZERS`, for all levels unless `level_quantizers` names others.
        options: `levels`, factors from the image on: (4, 2) makes grids of an eighth and a quarter of its sides;
            `level_quantizers`, `level_embeddings`, one for each level, coarse to fine; `finer_dropout`; `network`,
            its options and `reconstruction`, as for `VQVAE`; and those of the quantizers.

    Raises `InputError` if an option is unknown or a value is out of range, or if a level would not be coarser than the
    one before.

    Examples:
        >>> model = HierarchicalVQVAE(Signal(channels=3, size=(32, 32)), levels=(4, 2), hidden_channels=16)
        >>> [tuple(codes.shape) for codes in model.encode(torch.zeros(2, 3, 32, 32))]
        [(2, 4, 4), (2, 8, 8)]
    """

    options: ClassVar[type] = HierarchicalOptions

    def __init__(
        self, signal: Signal | dict[str, Any] = RGB, data_variance: float = 1.0, quantizer: str = "ema", **options: Any
    ) -> None:
        super().__init__(signal, data_variance, quantizer, options)
        settings = cast(HierarchicalOptions, self.settings)
        self.steps = settings.levels[::-1]  # of a level's sides to those of the next finer one
        self.factors = tuple(accumulate(settings.levels, mul))[::-1]
        count, hidden = len(self.steps), settings.hidden_channels
        names = settings.level_quantizers or (quantizer,) * count
        self.quantizer = LevelQuantizers(names, self.of_quantizer, settings.level_embeddings)
        seen = list(accumulate(level.embedding_dim for level in self.quantizer))  # numbers of all codes so far
        inputs = [hidden] * (count - 1) + [self.signal.channels]
        outputs = [hidden] * (count - 1) + [self.reconstruction.outputs]
        network = self.network
        self.encoders = nn.ModuleList(
            network.encoder(width, None, step) for width, step in zip(inputs, self.steps, strict=True)
        )
        self.to_latents = nn.ModuleList(
            nn.Conv2d(2 * hidden if number else hidden, level.embedding_dim, 1)
            for number, level in enumerate(self.quantizer)
        )
        self.decoders = nn.ModuleList(
            network.decoder(width, output, step) for width, output, step in zip(seen, outputs, self.steps, strict=True)
        )
        self.enlargers = nn.ModuleList(
            network.enlarger(width, step) for width, step in zip(seen[:-1], self.steps, strict=False)
        )
        self._check_sizes()
        self._settle()

    @property
    def levels(self) -> list[Any]:
        """Quantizers of the levels, coarse to fine."""
        return self.quantizer.each()

    @property
    def last_layer(self) -> nn.Module:
        """The layer that makes the outputs of the last decoder."""
        return list(self.decoders[-1].modules())[-1]

    def run(self, x: torch.Tensor, moment: Moment | None) -> Pass:
        """Return outputs, codes and losses for x (b, c, H, W); with a moment, finer levels may be hidden."""
        codes: Codes = ()
        terms: dict[str, torch.Tensor] = {}
        figures: dict[str, torch.Tensor] = {}
        shown = self._shown(moment)

        def quantize(number: int, latents: torch.Tensor) -> torch.Tensor:
            nonlocal codes
            own = moment and moment._replace(noise=moment.noise.of("level", number))
            found = self.quantizer[number](latents, own)
            codes += found.codes
            for name, term in found.losses.terms.items():
                terms[name] = terms.get(name, 0) + term
            figures.update((f"{name}_{number}", value) for name, value in found.losses.figures.items())
            # not left out: every weight must have a gradient, be it zero, or training in several processes stops
            return found.vectors if shown is None else found.vectors * (shown > number).view(-1, 1, 1, 1)

        outputs = self.decoders[-1](self._walk(x, quantize))
        return Pass(outputs, codes, Losses(terms, figures))

    def encode_latents(self, x: torch.Tensor) -> Latents:
        """Return the latents (b, D, h, w) of each level of x (b, c, H, W) in [-1, 1], with gradient.

        Those of a finer level depend on the codes of the coarser ones.

        Raises `InputError` if x is not a batch of images with the right channels.
        """
        self._check_shape(x)
        found: list[torch.Tensor] = []

        def quantize(number: int, latents: torch.Tensor) -> torch.Tensor:
            found.append(latents)
            return self.quantizer[number](latents).vectors

        self._walk(x, quantize)
        return tuple(found)

    def to_outputs(self, vectors: Latents) -> torch.Tensor:
        """Return the last decoder's outputs (b, n, H, W), of whole sites, for the vectors (b, D, h, w) of each level.

        Raises `InputError` if the sizes of the levels do not follow from one another.
        """
        for number, (coarse, fine) in enumerate(pairwise(vectors)):
            found, size = (tuple(each.shape[2:]) for each in (coarse, fine))
            needed = tuple(-(-side // self.steps[number]) for side in size)
            if found != needed:
                words = ["×".join(map(str, sides)) for sides in (found, size, needed)]
                raise InputError("`codes` of level {} are {}: below them, {} need {}".format(number, *words))
        context = vectors[0]
        for number, own in enumerate(vectors[1:], 1):
            context = self._join(number, own, context)
        return self.decoders[-1](context)

    def layout_of(self, size: Sides) -> Layout:
        """Return the grids of images (H, W)."""
        return self.quantizer.layout(self.sites(size))

    def _walk(self, x: torch.Tensor, quantize: Quantize) -> torch.Tensor:
        """Encode x (b, c, H, W) and quantize it level by level. Return all vectors, enlarged and joined."""
        features: list[torch.Tensor] = []
        for encoder, step in zip(reversed(self.encoders), reversed(self.steps), strict=True):
            x = encoder(pad(x, step))
            features.insert(0, x)
        context = quantize(0, self.to_latents[0](features[0]))
        for number, own in enumerate(features[1:], 1):
            above = crop(self.decoders[number - 1](context), own.shape[2:])
            vectors = quantize(number, self.to_latents[number](torch.cat([own, above], 1)))
            context = self._join(number, vectors, context)
        return context

    def _join(self, number: int, vectors: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Join the vectors (b, D, h, w) of a level with those of all coarser ones, enlarged to its size."""
        return torch.cat([vectors, crop(self.enlargers[number - 1](context), vectors.shape[2:])], 1)

    def _shown(self, moment: Moment | None) -> torch.Tensor | None:
        """Return how many levels the decoder sees of each image (b,), coarse to fine; None if it sees all."""
        count, dropout = len(self.steps), self.settings.finer_dropout
        if moment is None or not dropout:
            return None
        drops, numbers = moment.noise.uniforms("finer_dropout", 2).unbind(1)
        few = 1 + (numbers * (count - 1)).long().clamp(max=max(0, count - 2))
        return torch.where(drops < dropout, few, count)

    def _check_sizes(self) -> None:
        """Refuse a level that is not coarser than the next finer one."""
        sizes = self.sites(self.signal.size)
        for coarse, fine in zip(sizes, [*sizes[1:], self.signal.size], strict=True):
            if coarse == fine:
                given, size = " ".join(map(str, self.settings.levels)), "×".join(map(str, self.signal.size))
                raise InputError(
                    f"`levels` {given}: images of {size} become a single code before the last one: give fewer"
                )
