"""A re-statement of taming-transformers' pair of a VQ-GAN and a GPT: what imports must agree with.

Shapes: b batch, t positions, c channels, d channels of a head.
"""

import math

import torch
from foreign_vqgans import Taming, named
from torch import nn

ENTRIES, CHANNELS, HEADS, LAYERS, POSITIONS, CLASSES = 20, 24, 3, 2, 30, 7


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


class Block(nn.Module):
    def __init__(self, c, heads, positions):
        super().__init__()
        self.ln1, self.ln2, self.heads = nn.LayerNorm(c), nn.LayerNorm(c), heads
        self.attn = named(**{name: nn.Linear(c, c) for name in ("key", "query", "value", "proj")})
        self.attn.register_buffer("mask", torch.ones(positions, positions).tril().bool()[None, None])
        self.mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c), nn.Dropout(0.1))

    def attend(self, x):
        outputs, width, t = [], x.shape[2] // self.heads, x.shape[1]
        query, key, value = self.attn.query(x), self.attn.key(x), self.attn.value(x)
        for head in range(self.heads):
            own = slice(head * width, (head + 1) * width)
            scores = torch.einsum("bsd,btd->bst", query[..., own], key[..., own]) / width**0.5
            scores = scores.masked_fill(~self.attn.mask[0, :, :t, :t], -math.inf)
            outputs.append(scores.softmax(2) @ value[..., own])
        return self.attn.proj(torch.cat(outputs, 2))

    def forward(self, x):
        x = x + self.attend(self.ln1(x))
        return x + self.mlp[2](gelu(self.mlp[0](self.ln2(x))))


class Net2Net(nn.Module):
    """Its GPT reads a class, or the code `START` in its place, and all codes but the last; names are the originals'."""

    def __init__(self, positions=POSITIONS, known=ENTRIES):
        super().__init__()
        self.first_stage_model = Taming(entries=ENTRIES)
        self.transformer = named(
            tok_emb=nn.Embedding(known, CHANNELS),
            pos_emb=nn.Parameter(torch.zeros(1, positions, CHANNELS)),
            blocks=nn.Sequential(*(Block(CHANNELS, HEADS, positions) for _ in range(LAYERS))),
            ln_f=nn.LayerNorm(CHANNELS),
            head=nn.Linear(CHANNELS, known, bias=False),
        )

    def logits(self, codes, first):
        """Logits (b, K, h, w) of codes (b, h, w), given first tokens (b,)."""
        tokens = torch.cat([first[:, None], codes.flatten(1)], 1)[:, :-1]
        gpt = self.transformer
        x = gpt.blocks(gpt.tok_emb(tokens) + gpt.pos_emb[:, : tokens.shape[1]])
        return gpt.head(gpt.ln_f(x)).mT.unflatten(2, codes.shape[1:])


def config_of(**params):
    """The configuration of its training, for classes unless told otherwise."""
    gpt = {"vocab_size": ENTRIES, "block_size": POSITIONS, "n_layer": LAYERS, "n_head": HEADS, "n_embd": CHANNELS}
    stage = {"target": "taming.modules.util.Labelator", "params": {"n_classes": CLASSES}}
    first = {"target": "taming.models.vqgan.VQModel", "params": {"ddconfig": {"resolution": 16}}}
    wanted = {
        "cond_stage_key": "class_label",
        "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": gpt},
        "first_stage_config": first,
        "cond_stage_config": stage,
        **params,
    }
    return {"model": {"target": "taming.models.cond_transformer.Net2NetTransformer", "params": wanted}}
