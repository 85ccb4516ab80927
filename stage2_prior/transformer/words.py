"""Texts as transformers see them: a small encoder, and cross-attention.

Shapes: b batch, t words of a text, n positions, d width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegrid.codes import PAD

from .layers import Block, RMSNorm, Words


class WordEncoder(nn.Module):
    """A small transformer in which all words of a text see each other: its features, once for all sites and steps.

    A text that begins with PAD is no text. Its first feature is then learnt, in the row of PAD in the table of words.

    Args:
        num_words: rows of the table of words.
        length: t.
        width, num_heads, num_layers: the sizes.
    """

    def __init__(self, num_words: int, length: int, width: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, num_heads, normalise=True) for _ in range(num_layers))
        self.norm = RMSNorm(width)

    def forward(self, words: Tensor, dropout: float = 0.0) -> Words:
        """Turn words (b, t), PAD after the end of a text, into features; `dropout` is the share of them to drop."""
        ended = (words == PAD).cumsum(1) > 0
        hidden = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, 1:]], dim=1)
        x = self.embedding(words) + self.positions.weight[: words.shape[1]]
        if torch.is_autocast_enabled(x.device.type):  # embeddings are not in its type, and sums would stay in theirs
            x = x.to(torch.get_autocast_dtype(x.device.type))
        x = F.dropout(x, dropout, training=dropout > 0)
        for block in self.blocks:
            x = block(x, mask=~hidden[:, None, None], dropout=dropout)
        return Words(self.norm(x), hidden)


class CrossAttention(nn.Module):
    """Multi-head attention to the words of a text: x + attention, of the normalised features.

    Args:
        width: d.
        num_heads: heads of width d / num_heads, whose queries and keys are normalised.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = RMSNorm(width)
        self.of_sites = nn.Linear(width, width, bias=False)
        self.of_words = nn.Linear(width, 2 * width, bias=False)
        self.norms = nn.ModuleList(RMSNorm(width // num_heads) for _ in range(2))
        self.outward = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, words: Words, dropout: float = 0.0) -> Tensor:
        """Let each position of x (b, n, d) look at the words; `dropout` is the share of the result to drop."""
        query = self.of_sites(self.norm(x)).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.of_words(words.features).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = (norm(part) for norm, part in zip(self.norms, (query, key), strict=True))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=~words.hidden[:, None, None])
        new = self.outward(attended.transpose(1, 2).flatten(2))
        return x + F.dropout(new, dropout, training=dropout > 0)
