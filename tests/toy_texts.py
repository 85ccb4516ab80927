"""A prior that is asked in words, as small as it can be: the codes of a site depend on the mean of the words alone.

Shapes: b batch, t words of a text, *shape the sites of a grid, K num_embeddings.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

import codegrid
from codegrid.codes import PAD
from codegrid.protocols import NO_CONDITION
from codegrid.stage2_prior.likelihood import mean_nats
from codegrid.stage2_prior.options import TextOptions
from codegrid.stage2_prior.sequential_prior import SequentialPrior
from codegrid.stage2_prior.text_tokenizer import TextTokenizer

CAPTIONS = ["a red heart", "a green heart", "a red car", "a green car", "woman: dark skin tone", "!"]


@dataclass(frozen=True)
class ToyTextOptions(TextOptions):
    """Options of the toy prior of words."""

    width: int = 8
    """Width."""


class ToyTextPrior(SequentialPrior):
    options: ClassVar[type] = ToyTextOptions
    controls: ClassVar[frozenset[str]] = SequentialPrior.controls | {"guidance_scale"}

    def __init__(self, layout, grids=None, num_classes=0, num_words=0, text_length=0, **options):
        super().__init__(layout, grids, num_classes, num_words=num_words, text_length=text_length, **options)
        self.words = nn.Embedding(max(1, num_words), self.chosen.width)
        self.heads = nn.ModuleList(
            nn.Linear(self.chosen.width, grid.num_embeddings * grid.num_sites) for grid in self.layout
        )

    def logits(self, codes, given=NO_CONDITION):
        return self.of_words(self.texts(given, len(codes[0])), len(codes[0]))

    def of_words(self, words, count):
        words = torch.full((count, 1), PAD, device=self.device) if words is None else words
        shown = (words != PAD)[..., None]
        means = (self.words(words) * shown).sum(1) / shown.sum(1).clamp_min(1)
        pairs = zip(self.heads, self.layout, strict=True)
        return tuple(head(means).unflatten(1, (grid.num_embeddings, *grid.shape)) for head, grid in pairs)

    def forward(self, codes, given=NO_CONDITION, moment=None):
        return mean_nats(self.of_words(self.texts(given, len(codes[0]), moment), len(codes[0])), codes)


codegrid.register("prior", "toy-text", ToyTextPrior)


def build_text_prior(layout=None, length=8, captions=CAPTIONS, spread=3.0, **options):
    """A prior over texts, with a tokenizer of these captions, whose samples depend on the words."""
    torch.manual_seed(0)
    tokenizer = TextTokenizer.learn(captions, 300)
    layout = layout or [codegrid.Grid((3, 4), 6)]
    prior = ToyTextPrior(layout, num_words=tokenizer.num_words, text_length=length, **options)
    nn.init.normal_(prior.words.weight, std=spread)
    prior.text_tokenizer = tokenizer
    return prior.eval()
