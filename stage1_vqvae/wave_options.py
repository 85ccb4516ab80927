"""Options of the tokenizer of sound, with their ranges. Command lines are built from them, without torch."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from codegrid.errors import InputError
from codegrid.limits import MAX_LAYERS, MAX_SIDE, MAX_WIDTH, AtStart, Range, check_fields
from codegrid.registry import NameOf

from .options import OF_SOUND, Reconstruction


@dataclass(frozen=True)
class WaveOptions:
    """Options of the tokenizer of sound, besides those of a decoder that draws.

    Raises `InputError` if there is no stride, a code would stand for too many samples, or the reconstruction term is
    one of images.
    """

    hidden_channels: Annotated[int, Range(2, MAX_WIDTH)] = 64
    """Channels of the encoder and the decoder."""
    residual_channels: Annotated[int, Range(1, MAX_WIDTH)] = 32
    """Channels inside a residual block."""
    num_residual_blocks: Annotated[int, Range(0, MAX_LAYERS)] = 3
    """Residual blocks in the encoder, and as many in the decoder."""
    strides: tuple[Annotated[int, Range(2, 64)], ...] = (2, 2, 2, 2, 2, 2)
    """Strides of the encoder's convolutions; their product is the number of samples of a code."""
    decoder: Annotated[str, NameOf("prior")] | None = None
    """Prior that draws the samples one after the other, given the codes, such as wavenet; its options are also those of
    --model wave. By default transposed convolutions give all samples at once."""
    reconstruction: Reconstruction = "spectral"
    """Reconstruction term, unless a prior draws the samples: then it is the prior's nats per sample."""
    encoder_input: Literal["wave", "cepstra"] = "wave"
    """Input of the encoder: the samples, or 15 mel-cepstral coefficients of each 10 ms, which do not tell how loud the
    sound is, and hardly its pitch. Then the codes can say more of what is said."""
    cepstral_weight: Annotated[float, Range(0)] = 0.0
    """Weight of an auxiliary head that tells the mel-cepstra of a code's samples from its vector alone. 0: no such
    head."""
    encoder_shift: Annotated[int, Range(0, MAX_SIDE)] = 0
    """Shift what the encoder hears in training at random by up to this many samples; what is to be reconstructed is not
    shifted. Codes should then depend less on small shifts."""
    code_dropout: Annotated[float, Range(0, below=1)] = 0.1
    """Share of the windows whose codes are hidden in training from a prior that draws the samples. It then knows how
    likely sound is without them, and evaluate can say what the codes are worth."""
    frozen_codes: Annotated[bool, AtStart()] = False
    """Train the decoder alone, on the codes of the model that --init-from names."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.reconstruction not in OF_SOUND:
            raise InputError(f"`reconstruction` {self.reconstruction}: for sound choose one of {', '.join(OF_SOUND)}")
        if not self.strides or math.prod(self.strides) > MAX_SIDE:
            given = " ".join(map(str, self.strides)) or "of none"
            raise InputError(f"`strides` {given}: give at least one, with a product of at most {MAX_SIDE:,}")
