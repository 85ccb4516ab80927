"""A VQ-VAE of sound (van den Oord et al. 2017, section 4.3): wave → a sequence of codes → wave.

The codes know the wave; the decoder is also told who speaks, so that another speaker can be given in decoding. It is a
network that returns the wave at once, or a prior of the table, such as the WaveNet, which draws sample after sample.

Shapes: b batch, T samples, t codes (t = ⌈T / strides' product⌉), D embedding_dim, K num_embeddings, n outputs of a
decoder, C channels of the features that a prior is given; codes (b, t), one tensor for each grid of the quantizer.
"""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from codegrid.codes import HIDDEN, Codes, Condition, Latents, Layout, Losses, Moment, Sides, Signal
from codegrid.devices import widest
from codegrid.errors import InputError
from codegrid.limits import MAX_CLASSES, Range, check_value, check_whole, short, split_options
from codegrid.model_folder import ModelFolder
from codegrid.noise import Noise
from codegrid.protocols import NO_CONDITION, Reconstructed
from codegrid.registry import TABLES
from codegrid.tensors import Rows, check_codes, check_signal

from .cepstra import CepstralHead
from .drawn_waves import draw_wave, drop_codes, loss_of_wave, make_prior, names_of_options, nats_of_wave, without_codes
from .gradients import checked_gradients
from .image_tokenizer import fill_in
from .padded_codes import hide_padding, quantize_counted
from .reconstruction import RECONSTRUCTIONS
from .wave_networks import WaveDecoder, check_speakers, in_windows, make_encoder, reach_of, shift_at_random
from .wave_options import WaveOptions

WINDOW = Signal("sound", 1, (8192,), 16_000)
AT_ONCE = 2**18  # samples of a clip that pass through the networks at once

Network = Callable[[torch.Tensor], torch.Tensor]


class WaveVQVAE(ModelFolder, nn.Module):
    """A VQ-VAE of sound.

    Args:
        signal: the samples (T,) of the windows that it is trained on, and their rate; one channel. A dict of its fields
            is accepted, too.
        data_variance: variance of the training samples, in the range [-1, 1]; scales the reconstruction term.
        quantizer: a name in `QUANTIZERS`.
        num_classes: speakers that the decoder tells apart, 0 for none. They are labels of a condition.
        options: those of `WaveOptions`; those of the prior that `decoder` names, if it does; and the quantizer's.

    Raises `InputError` if an option is unknown or a value is out of range.

    Examples:
        >>> signal = Signal("sound", 1, (256,), 16000)
        >>> model = WaveVQVAE(signal, num_classes=2, hidden_channels=8, strides=(4, 4)).eval()
        >>> (codes,) = model.encode(torch.zeros(3, 1, 256))
        >>> codes.shape
        torch.Size([3, 16])
        >>> model.decode((codes,), given=Condition(torch.tensor([0, 1, 1]))).shape
        torch.Size([3, 1, 256])
    """

    kind: ClassVar[str] = "tokenizer"
    options: ClassVar[type] = WaveOptions
    learns: ClassVar[str] = "sound"

    def __init__(
        self,
        signal: Signal | dict[str, Any] = WINDOW,
        data_variance: float = 1.0,
        quantizer: str = "ema",
        num_classes: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.signal = signal if isinstance(signal, Signal) else Signal(**signal)
        if len(self.signal.size) != 1 or self.signal.channels != 1:
            raise InputError(f"`signal` {short(signal)}: a tokenizer of sound needs windows (samples,) of one channel")
        check_value("data_variance", data_variance, Annotated[float, Range(1e-12)])
        check_whole("num_classes", num_classes, 0, MAX_CLASSES)
        TABLES["quantizer"].check(quantizer)
        self.settings, others = split_options(self.options, options, "the wave tokenizer")
        of_prior = {name: others.pop(name) for name in names_of_options(self.settings.decoder) & others.keys()}
        self.data_variance, self.num_classes = data_variance, num_classes
        self.reconstruction = RECONSTRUCTIONS[self.settings.reconstruction](1, data_variance)
        self.quantizer = TABLES["quantizer"][quantizer](**others)
        self.spread = data_variance**0.5  # the encoder sees samples over it
        self.hop = math.prod(self.settings.strides)  # samples of a code
        self._build(self.quantizer.embedding_dim, of_prior)
        self.layout = self.layout_of(self.signal.size)
        self.config = {
            "signal": self.signal.as_json(), "data_variance": data_variance, "quantizer": quantizer,
            "num_classes": num_classes, **self._own(), **getattr(self.quantizer, "config", others),
        }  # fmt: skip
        self.provenance: dict[str, Any] = {}

    def _build(self, width: int, of_prior: dict[str, Any]) -> None:
        """Make the networks: the encoder, the decoder, and the prior that draws, if there is one."""
        chosen = self.settings
        sizes = (chosen.hidden_channels, chosen.residual_channels, chosen.num_residual_blocks, chosen.strides)
        self.encoder = make_encoder(chosen.encoder_input, self.signal.rate, width, *sizes)
        window = getattr(self.encoder[0], "window", 0)
        self.reach = reach_of(chosen.strides, chosen.num_residual_blocks, window)
        draws = chosen.decoder is not None
        outputs = chosen.hidden_channels if draws else self.reconstruction.outputs
        # a prior that draws is told itself who speaks
        self.decoder = WaveDecoder(width, outputs, *sizes, num_speakers=0 if draws else self.num_classes)
        self.prior: Any = None
        if draws:
            self.prior = make_prior(chosen.decoder, self.signal.size, outputs, self.num_classes, of_prior)
        self.head: CepstralHead | None = None
        if chosen.cepstral_weight and not chosen.frozen_codes:
            self.head = CepstralHead(width, self.signal.rate, chosen.strides)
        if chosen.frozen_codes:
            for part in (self.encoder, self.quantizer):
                part.requires_grad_(False)

    def _own(self) -> dict[str, Any]:
        """Return the options of the tokenizer and of the prior that draws, which rebuild them."""
        own = {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self.settings).items()
        }
        return own | {name: self.prior.config[name] for name in sorted(names_of_options(self.settings.decoder))}

    @property
    def draws(self) -> bool:
        """Whether the decoder draws: what is decoded then differs by design from what was encoded."""
        return self.prior is not None

    def forward(self, x: torch.Tensor, given: Condition = NO_CONDITION, moment: Moment | None = None) -> Reconstructed:
        """Return waves, codes and losses for x (b, 1, T) in [-1, 1], given the speakers as labels.

        If the decoder draws, the output is empty, and the reconstruction term is the mean nats of a sample's class.
        Samples after `given.lengths` are padding: they are heard, but do not count, and their codes are HIDDEN.
        """
        lengths = None if given.lengths is None else self._in_codes(given.lengths)
        if self.settings.frozen_codes:
            with torch.no_grad():
                latents = self.encoder(self._whole(x))
                vectors, codes, _ = quantize_counted(self.quantizer, latents, lengths)
            losses = Losses({}, {})
        else:
            latents = self.encoder(self._whole(shift_at_random(x, self.settings.encoder_shift, moment)))
            vectors, codes, losses = quantize_counted(self.quantizer, latents, lengths, moment)
        outputs = self.decoder(vectors, given.labels)[..., : x.shape[2]]
        if self.prior is None:
            wave, term = self.reconstruction.image(outputs), self.reconstruction.loss(outputs, x, given.lengths)
        else:
            outputs = drop_codes(outputs, self.settings.code_dropout, moment)
            term = loss_of_wave(self.prior, x, self._condition(outputs, given), moment)
            wave = x.new_empty(0)
        terms = {"reconstruction_loss": term, **losses.terms}
        if self.head is not None:
            terms["cepstral_loss"] = self.settings.cepstral_weight * self.head(vectors, self._whole(x), lengths)
        return Reconstructed(wave, codes, Losses(terms, losses.figures | checked_gradients(latents, terms, moment)))

    @torch.no_grad()
    def encode(self, x: torch.Tensor) -> Codes:
        """Return the codes (b, t) int64, one tensor for each grid, of x (b, 1, T) in [-1, 1], of any length.

        A clip shorter than a code, or that does not end with one, is followed by silence. A long one passes through the
        encoder in windows. Raises `InputError` if x is not a batch of waves in this range.
        """
        check_signal("x", x)
        (latents,) = self.encode_latents(x.to(next(self.parameters()).dtype))
        return cast(Codes, self.quantizer.encode(latents))

    @torch.no_grad()
    def decode(
        self, codes: Codes, size: Sides | None = None, given: Condition = NO_CONDITION, noise: Noise | None = None
    ) -> torch.Tensor:
        """Return waves (b, 1, T), roughly in [-1, 1], for codes (b, t), one tensor for each grid.

        Args:
            codes: of any length.
            size: the (T,) to cut to; by default that of `signal` if there are as many codes as in training, otherwise
                that of whole codes.
            given: the speakers as labels; without labels, a mean of all, or whoever a prior draws without a label.
            noise: the random numbers of a decoder that draws, by default those of seed 0.

        Raises `InputError` if a code or the number of grids is not one of this tokenizer's, or a speaker is unknown.
        """
        check_codes("codes", codes, self.layout, any_size=True)
        vectors = self.quantizer.look_up(tuple(grid.long() for grid in codes))
        return self._to_wave(vectors, size, given, noise)

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (b, 1, T) encoded and decoded again, in its own length, without a speaker."""
        return self.decode(self.encode(x), tuple(x.shape[2:]))

    def encode_latents(self, x: torch.Tensor) -> Latents:
        """Return the latents (b, D, t) of x (b, 1, T) before they are quantized, with gradient.

        Raises `InputError` if x is not a batch of waves of one channel.
        """
        if x.ndim != 3 or x.shape[1] != 1 or not x.shape[2]:
            raise InputError(f"`x` has the shape {tuple(x.shape)}: it must be (b, 1, samples)")
        return (self._in_windows(self.encoder, self._whole(x), (self.hop, 1)),)

    def decode_latents(self, latents: Latents, quantize: bool) -> torch.Tensor:
        """Return waves (b, 1, T) for latents (b, D, t), quantized first if `quantize`."""
        (only,) = latents
        return self._to_wave(self.quantizer(only).vectors if quantize else only, None, NO_CONDITION, None)

    @torch.no_grad()
    def nll(self, x: torch.Tensor, codes: Codes, given: Condition = NO_CONDITION) -> torch.Tensor | None:
        """Return −log p of the 256 µ-law classes of x (b, 1, T) given its codes (b, t), (b,) in nats.

        Only the first `given.lengths` samples count, if lengths are given. An item whose codes are all HIDDEN is judged
        without codes, which a decoder learns with `code_dropout`. Returns None if the decoder has no such likelihood.
        """
        if self.prior is None:
            return None
        vectors = self.quantizer.look_up(tuple(grid.clamp_min(0) for grid in codes))
        outputs = without_codes(self.outputs(vectors, given)[..., : x.shape[2]], (codes[0] == HIDDEN).all(1))
        nats = nats_of_wave(self.prior, x, self._condition(outputs, given))
        return nats.to(widest(nats.device)).sum(1)

    @torch.no_grad()
    def preview(self, codes: Codes, drawn: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return waves (b, 1, T) of an unfinished draw, silent where no code is drawn yet.

        A decoder that draws takes too long for that: all is silent.
        """
        if self.draws:
            return torch.zeros(len(codes[0]), 1, *self.signal.size, device=self.device)
        waves = self.decode(fill_in(self.quantizer, codes, drawn))
        known = torch.stack([F.interpolate(grid[:, None].float(), waves.shape[2:]) for grid in drawn]).amax(0)
        return torch.where(known > 0, waves, 0)

    def kept_sites(self, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return, for each grid, the sites (t,) bool whose own samples are all in `mask` (T,) bool."""
        if tuple(mask.shape) != self.signal.size:
            raise InputError(f"`mask` has the shape {tuple(mask.shape)}, but sound has {self.signal.size}")
        unknown = self._whole((~mask.bool()).float()[None, None])
        return tuple(F.adaptive_max_pool1d(unknown, grid.shape[0])[0, 0] == 0 for grid in self.layout)

    def hide_padding(self, codes: Codes, lengths: torch.Tensor) -> Codes:
        """Return codes (b, t), HIDDEN where they begin after the end of sounds of `lengths` (b,) samples."""
        return hide_padding(codes, self._in_codes(lengths))

    def after_step(self, step: int, seed: int) -> None:
        """Move the codebooks, once for all pieces of a step, unless they are frozen."""
        if not self.settings.frozen_codes:
            self.quantizer.after_step(step, seed)

    def layout_of(self, size: Sides) -> Layout:
        """Return the grids of sound of this length (T,)."""
        return cast(Layout, self.quantizer.layout((-(-size[0] // self.hop),)))

    def shared_rows(self, other: Any) -> dict[str, Rows]:
        """Return which rows of the decoder's tables stand for a speaker of the same name."""
        ours, theirs = (model.provenance.get("classes", []) for model in (self, other))
        shared = [name for name in ours if name in theirs]
        rows = [ours.index(name) for name in shared], [theirs.index(name) for name in shared]
        tables = ("decoder.speakers.weight", "prior.network.condition.weight")
        return {name: rows for name in tables if name in self.state_dict() and name in other.state_dict()}

    def outputs(self, vectors: torch.Tensor, given: Condition) -> torch.Tensor:
        """Return the decoder's outputs (b, n, T) of whole codes for vectors (b, D, t)."""
        if self.prior is None and self.num_classes:
            check_speakers(given.labels, self.num_classes)
        speakers = None if given.labels is None else given.labels.to(self.device)
        count, around = vectors.shape[2], 0 if self.draws else self.reach
        vectors = F.pad(vectors, (around, around), mode="replicate")  # beyond the ends are zeros, which would click
        outputs = self._in_windows(lambda part: self.decoder(part, speakers), vectors, (1, self.hop))
        return outputs.narrow(2, around * self.hop, count * self.hop)

    def _in_codes(self, lengths: torch.Tensor) -> torch.Tensor:
        """Return lengths (b,) in samples as codes, of which the last may be partly padding."""
        return -(-lengths // self.hop)

    def _whole(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (b, 1, T) over the spread of the data, followed by silence up to a whole code."""
        return F.pad(x, (0, -x.shape[2] % self.hop)) / self.spread

    def _in_windows(self, network: Network, x: torch.Tensor, sizes: tuple[int, int]) -> torch.Tensor:
        return in_windows(network, x, max(1, AT_ONCE // self.hop), self.reach, sizes)

    def _to_wave(
        self, vectors: torch.Tensor, size: Sides | None, given: Condition, noise: Noise | None
    ) -> torch.Tensor:
        outputs = self.outputs(vectors, given)
        as_trained = vectors.shape[2] == -(-self.signal.size[0] // self.hop)
        (length,) = size or (self.signal.size if as_trained else outputs.shape[2:])
        outputs = outputs[..., :length]
        if self.prior is None:
            return self.reconstruction.image(outputs)
        noise = noise or Noise(0, 0, len(outputs), self.device)
        return draw_wave(self.prior, length, self._condition(outputs, given), noise.of("wave")).to(outputs.dtype)

    def _condition(self, outputs: torch.Tensor, given: Condition) -> Condition:
        return Condition(given.labels if self.num_classes else None, features=(outputs,), lengths=given.lengths)
