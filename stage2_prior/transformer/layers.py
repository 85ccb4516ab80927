"""Layers of transformers over codes: attention over a whole sequence or beside kept keys and values, and positions.

Shapes: b batch, n positions, m new positions, t words, d width, d_h width of a head, *shape the sites of a grid.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.budget import check_memory
from codegrid.codes import Sides
from codegrid.errors import InputError
from codegrid.protocols import AdamSettings

from .rotations import rotate

EPSILON = 1e-5
SPREAD = 0.02  # standard deviation of new weights
ADAM = AdamSettings((0.9, 0.95), 0.05)  # as for LlamaGen and VAR
HIDING = 8  # channels that hide keys; kernels want them in eights
UNSEEN = -1e4  # in these channels of a hidden key


class RMSNorm(nn.Module):
    """Root mean square normalisation: w ⊙ x / √(mean x² + ε) over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., d), in the type of x."""
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), EPSILON)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): V (silu(W x) ⊙ U x), as many weights as a plain one of width 4d."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = -(-8 * width // (3 * 32)) * 32
        self.inward = nn.Linear(width, 2 * inner, bias=False)
        self.outward = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to each position, (b, n, d) → (b, n, d)."""
        gate, value = self.inward(x).chunk(2, dim=-1)
        return cast(Tensor, self.outward(F.silu(gate) * value))


class KeyValueCache:
    """Keys and values of all layers at the positions so far: memory is taken once, and written in place.

    A network passes new positions through all of its layers, and then moves `length` on by their number.

    Args:
        layers, batch_size, num_heads, positions, head_width: the sizes.
        like: a tensor of the type and on the device of the cache.

    Raises `InputError` if it would not fit in memory.
    """

    def __init__(
        self, layers: int, batch_size: int, num_heads: int, positions: int, head_width: int, like: Tensor
    ) -> None:
        held = batch_size * self.bytes_per_sample(layers, positions, num_heads * head_width, like.element_size())
        check_memory(f"the keys and values of {batch_size:,} samples", held, "draw fewer at once (`batch_size`)")
        self.tensor = like.new_zeros(layers, 2, batch_size, num_heads, positions, head_width)
        self.length = 0

    @staticmethod
    def bytes_per_sample(layers: int, positions: int, width: int, size: int) -> int:
        """Return the memory of one sample's keys and values, in numbers of `size` bytes."""
        return 2 * layers * positions * width * size

    def put(self, layer: int, key: Tensor, value: Tensor, causal: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keep a layer's keys and values (b, heads, m, d_h) of new positions.

        Returns the keys and values of all positions so far, and if `causal`, which of them each new position sees:
        (m, positions so far), or None for all.
        """
        new = key.shape[2]
        end = self.length + new
        keys, values = self.tensor[layer, :, :, :, :end].unbind(0)
        keys[:, :, self.length :] = key
        values[:, :, self.length :] = value
        seen = None
        if causal and new > 1:  # PyTorch's own causal mask would begin at the first key, not at the first new one
            seen = torch.ones(new, end, dtype=torch.bool, device=key.device).tril(self.length)
        return keys, values, seen


class Words(NamedTuple):
    """Texts as features, of which those after the end of a text are not to be seen."""

    features: Tensor  # (b, t, d)
    hidden: Tensor  # (b, t) bool


class Attention(nn.Module):
    """Multi-head self-attention, perhaps with texts in front.

    Args:
        width: d.
        num_heads: heads of width d_h = d / num_heads.
        normalise: normalise each head's queries and keys, which keeps their products small.
        after_words: whether there are texts in front, which all positions see. Queries, keys and values are wider by
            `HIDING` channels then, in which the keys after the end of a text are hidden: a mask would take memory for
            each sample and each pair of positions.
        bias: whether its linear layers have biases.

    Raises `InputError` if the width is not `num_heads` times an even number.
    """

    def __init__(
        self, width: int, num_heads: int, normalise: bool = False, after_words: bool = False, bias: bool = False
    ) -> None:
        super().__init__()
        if width % (2 * num_heads):
            raise InputError(f"`channels` {width}: it must be a multiple of {2 * num_heads}, twice `num_heads`")
        self.num_heads = num_heads
        self.inward = nn.Linear(width, 3 * width, bias=bias)
        self.outward = nn.Linear(width, width, bias=bias)
        self.norms = nn.ModuleList(RMSNorm(width // num_heads) for _ in range(2 * normalise))
        self.of_words = nn.Linear(width, 2 * width, bias=False) if after_words else None

    def forward(
        self,
        x: Tensor,
        turned: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        words: Words | None = None,
    ) -> Tensor:
        """Let each position of x (b, n, d) look at others.

        Args:
            turned: the rotations of queries and of keys, by `rotation_at`; None: none.
            mask: (n, n) bool, True where a position (row) sees another one; None: everywhere.
            causal: whether a position sees only itself and earlier ones.
            cache: keys and values of earlier positions, which all positions of x see, and the number of this layer
                in it; those of x are added.
            words: texts in front, unless their keys and values are in the cache already.
        """
        query, key, value = self.inward(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.norms:
            query, key = (norm(part) for norm, part in zip(self.norms, (query, key), strict=True))
        if turned is not None:
            query, key = (rotate(part, rotation) for part, rotation in zip((query, key), turned, strict=True))
        width, scale = query.shape[3], None
        if self.of_words is not None:
            scale, query = width**-0.5, F.pad(query, (0, HIDING), value=1.0)
            key, value = self._put_in_front(words, F.pad(key, (0, HIDING)), F.pad(value, (0, HIDING)))
        if cache is not None:
            key, value, mask = cache.put(layer, key, value, causal)
            mask = mask if mask is None else mask[-query.shape[2] :]
        elif words is not None:  # PyTorch's causal mask begins at the first key: queries of words that nobody reads
            query = F.pad(query, (0, 0, words.hidden.shape[1], 0))
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal and cache is None, scale=scale
        )[:, :, -x.shape[1] :, :width]
        return cast(Tensor, self.outward(attended.transpose(1, 2).flatten(2)))

    def _put_in_front(self, words: Words | None, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values (b, heads, t + n, d_h + `HIDING`) of texts and of the positions behind them."""
        if words is None or self.of_words is None:
            return key, value
        keys, values = self.of_words(words.features).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        keys = self.norms[1](keys) if self.norms else keys
        marks = words.hidden[:, None, :, None].to(keys) * UNSEEN
        keys = torch.cat([keys, marks.expand(*keys.shape[:3], HIDING)], dim=3)
        return torch.cat([keys, key], dim=2), torch.cat([F.pad(values, (0, HIDING)), value], dim=2)


class Block(nn.Module):
    """A layer of a transformer: x + attention, then x + feed-forward, each of the normalised features.

    A subclass may have another normalisation and feed-forward network, built from the width, and biases.

    Args:
        width, num_heads, normalise, after_words: those of the attention.
        condition_width: width of a vector (b, ·) that scales, shifts and gates both halves (adaLN-zero, Peebles and
            Xie 2022, arXiv 2212.09748); 0: none. A new block lets none of them through.
    """

    norm_class: ClassVar[type[nn.Module]] = RMSNorm
    feed_forward_class: ClassVar[type[nn.Module]] = FeedForward
    bias: ClassVar[bool] = False

    def __init__(
        self, width: int, num_heads: int, normalise: bool = False, condition_width: int = 0, after_words: bool = False
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(self.norm_class(width) for _ in range(2))
        self.attention = Attention(width, num_heads, normalise, after_words, self.bias)
        self.feed_forward = self.feed_forward_class(width)
        self.modulation = nn.Linear(condition_width, 6 * width) if condition_width else None

    def forward(
        self,
        x: Tensor,
        turned: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        condition: Tensor | None = None,
        dropout: float = 0.0,
        words: Words | None = None,
    ) -> Tensor:
        """Turn features (b, n, d) into the next ones; `dropout` is the share of each half's result to drop.

        `condition` is (b, condition_width); the other arguments are those of the attention.
        """
        scales, shifts, gates = self._modulate(condition)
        for half in range(2):
            inner = self.norms[half](x)
            if scales is not None and shifts is not None:
                inner = inner * (1 + scales[half]) + shifts[half]
            if half:
                inner = self.feed_forward(inner)
            else:
                inner = self.attention(inner, turned, mask, causal, cache, layer, words)
            inner = F.dropout(inner, dropout, training=dropout > 0)
            x = x + (inner if gates is None else gates[half] * inner)
        return x

    def _modulate(self, condition: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the scales, shifts and gates of both halves, (2, b, 1, d) each."""
        if self.modulation is None or condition is None:
            return None, None, None
        scales, shifts, gates = self.modulation(F.silu(condition)).unflatten(1, (3, 2, 1, -1)).permute(1, 2, 0, 3, 4)
        return scales, shifts, gates


class Positions(nn.Module):
    """Learnt vectors of the sites of a grid: the sum of one for each coordinate."""

    def __init__(self, shape: Sides, width: int) -> None:
        super().__init__()
        self.shape = shape
        self.tables = nn.ModuleList(nn.Embedding(side, width) for side in shape)

    def forward(self, shape: Sides | None = None) -> Tensor:
        """Return the vectors (n, d) of all sites, in raster order, of the grid or of a smaller one.

        Raises `InputError` if a grid is larger than the one that was learnt.
        """
        shape = self.shape if shape is None else tuple(shape)
        if len(shape) != len(self.shape) or any(map(int.__gt__, shape, self.shape)):
            asked, learnt = ("×".join(map(str, sides)) for sides in (shape, self.shape))
            raise InputError(f"a grid of {asked} sites, but this prior has learnt positions for {learnt} sites")
        device = cast(nn.Embedding, self.tables[0]).weight.device
        total = torch.zeros((), device=device)
        for axis, (side, table) in enumerate(zip(shape, self.tables, strict=True)):
            numbers = torch.arange(side, device=device)
            total = total + table(numbers).view(side, *[1] * (len(shape) - 1 - axis), -1)
        return total.flatten(0, -2)


@torch.no_grad()
def initialise(module: nn.Module, num_layers: int) -> None:
    """Draw new weights from N(0, 0.02²), and 0 for biases; what each half of a layer adds is smaller the more layers.

    The modulation of blocks is 0.
    """
    spreads = {"outward": SPREAD / math.sqrt(2 * max(1, num_layers)), "modulation": 0.0}
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            part.weight.normal_(0, spreads.get(name.rpartition(".")[2], SPREAD))
        if isinstance(part, nn.Linear) and part.bias is not None:
            part.bias.zero_()
