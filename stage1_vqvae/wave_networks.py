"""Networks of the tokenizer of sound: strided convolutions, and the same transposed, for sound of any length.

Shapes: b batch, c channels of a network's input, n of its output, T samples, t codes (T = t · the strides' product).
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul

import torch
import torch.nn.functional as F
from torch import nn

from codegrid.codes import Moment
from codegrid.errors import InputError

from .cepstra import COEFFICIENTS, Cepstra

DILATIONS = (1, 3, 9)  # of residual blocks, in turn


class ResidualBlock(nn.Module):
    """A residual block: x + (ReLU, dilated convolution of 3, ReLU, 1)(x)."""

    def __init__(self, channels: int, residual_channels: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv1d(channels, residual_channels, 3, padding=dilation, dilation=dilation),
            nn.ReLU(),
            nn.Conv1d(residual_channels, channels, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block, (b, channels, t) → (b, channels, t)."""
        return x + self.layers(x)


class Shrink(nn.Conv1d):
    """A convolution of stride s and kernel 2 s, (b, c, s · t) → (b, n, t), centred on the s samples of each output."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 2 * stride, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve, with zeros beyond both ends."""
        (stride,) = self.stride
        return super().forward(F.pad(x, (stride // 2, stride - stride // 2)))


class Grow(nn.ConvTranspose1d):
    """The transposed `Shrink`, (b, c, t) → (b, n, s · t)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 2 * stride, stride)

    def forward(self, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        """Convolve, and cut both ends off."""
        (stride,) = self.stride
        return super().forward(x)[..., stride // 2 : stride // 2 - stride]


def residual_blocks(channels: int, residual_channels: int, count: int) -> list[nn.Module]:
    """Return residual blocks of growing dilation."""
    return [ResidualBlock(channels, residual_channels, DILATIONS[i % len(DILATIONS)]) for i in range(count)]


class WaveEncoder(nn.Sequential):
    """Encoder, (b, c, T) → (b, n, t): strided convolutions, then the residual blocks."""

    def __init__(
        self, in_channels: int, out_channels: int, hidden: int, residual: int, num_blocks: int, strides: Sequence[int]
    ) -> None:
        layers: list[nn.Module] = []
        for stride in strides:
            layers += [Shrink(hidden if layers else in_channels, hidden, stride), nn.ReLU()]
        first = nn.Conv1d(hidden if layers else in_channels, hidden, 3, padding=1)
        layers += [first, *residual_blocks(hidden, residual, num_blocks), nn.ReLU()]
        super().__init__(*layers, nn.Conv1d(hidden, out_channels, 1))


def make_encoder(
    reads: str,
    rate: float | None,
    out_channels: int,
    hidden: int,
    residual: int,
    num_blocks: int,
    strides: Sequence[int],
) -> nn.Sequential:
    """Return a new encoder, (b, 1, T) → (b, n, t), that reads the "wave" itself, or its "cepstra" in its first layer.

    Raises `InputError` if cepstra are to be read of sound of an unknown rate.
    """
    if reads == "wave":
        return WaveEncoder(1, out_channels, hidden, residual, num_blocks, strides)
    first = Cepstra(rate, strides)
    rest = strides[first.num_strides :]
    return nn.Sequential(first, *WaveEncoder(COEFFICIENTS, out_channels, hidden, residual, num_blocks, rest))


class WaveDecoder(nn.Module):
    """Decoder, (b, c, t) → (b, n, T): the encoder's mirror; a speaker, if there are several, is added to each site."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int,
        residual: int,
        num_blocks: int,
        strides: Sequence[int],
        num_speakers: int = 0,
    ) -> None:
        super().__init__()
        self.speakers = nn.Embedding(num_speakers, hidden) if num_speakers else None
        self.first = nn.Conv1d(in_channels, hidden, 3, padding=1)
        layers: list[nn.Module] = [*residual_blocks(hidden, residual, num_blocks)]
        for number, stride in enumerate(reversed(strides), 1):
            layers += [nn.ReLU(), Grow(hidden, hidden if number < len(strides) else out_channels, stride)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor, speakers: torch.Tensor | None = None) -> torch.Tensor:
        """Decode vectors (b, c, t) for speakers (b,) int64; a number below 0 stands for the mean of all."""
        x = self.first(x)
        if self.speakers is not None:
            table = torch.cat([self.speakers.weight, self.speakers.weight.mean(0, keepdim=True)])
            rows = torch.full((len(x),), -1, device=x.device) if speakers is None else speakers
            x = x + table[rows.remainder(len(table))][..., None].to(x.dtype)
        return self.layers(x)


def reach_of(strides: Sequence[int], num_blocks: int, window: int = 0) -> int:
    """Return how many codes beyond a code, on both sides, its samples depend on, or it on them.

    If an encoder reads cepstra, the frames of these see `window` samples.
    """
    total = math.prod(strides)
    # a strided convolution sees s of its own inputs further, on either side
    samples = sum(before * stride for before, stride in zip(accumulate(strides, mul, initial=1), strides, strict=False))
    samples += window // 2
    at_codes = 2 + sum(DILATIONS[i % len(DILATIONS)] for i in range(num_blocks))
    return -(-samples // total) + at_codes


def shift_at_random(x: torch.Tensor, most: int, moment: Moment | None) -> torch.Tensor:
    """Return x (b, c, T), in training each item shifted by up to `most` samples either way; silence moves in."""
    if moment is None or not most:
        return x
    starts = (moment.noise.uniforms("encoder shift") * (2 * most + 1)).long().to(x.device)
    places = starts[:, None] + torch.arange(x.shape[2], device=x.device)
    return F.pad(x, (most, most)).gather(2, places[:, None].expand_as(x))


def check_speakers(labels: torch.Tensor | None, count: int) -> None:
    """Raise `InputError` if labels (b,) name a speaker who is not one of `count`, nor -1, nobody."""
    if labels is not None and not (known := (labels >= -1) & (labels < count)).all():
        raise InputError(
            f"`labels`: there is no speaker {int(labels[~known][0])}; they are 0 to {count - 1}, or -1 for none"
        )


def in_windows(
    network: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, length: int, reach: int, sizes: tuple[int, int]
) -> torch.Tensor:
    """Apply a network to x (b, c, ·) in windows of `length` codes, each with the codes around it that it depends on.

    Args:
        network: (b, c, k · sizes[0]) → (b, n, k · sizes[1]) for any k codes.
        x: the whole input.
        length: codes of a window.
        reach: codes.
        sizes: values per code of the input, and of the output.
    """
    taken, given = sizes
    count = x.shape[2] // taken
    if count <= length:
        return network(x)
    pieces = []
    for first in range(0, count, length):
        last, begin = min(first + length, count), max(0, first - reach)
        piece = network(x[:, :, begin * taken : (last + reach) * taken])
        pieces.append(piece[:, :, (first - begin) * given : (last - begin) * given])
    return torch.cat(pieces, dim=2)
