"""A tokenizer of two grids of different shapes, and priors of one grid each, as small as they can be.

Shapes: b batch, K num_embeddings, *shape the sites of a grid.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

import codegrid
from codegrid import Grid, Signal, TwoStagePipeline
from codegrid.codes import Losses
from codegrid.model_folder import ModelFolder
from codegrid.protocols import NO_CONDITION, Reconstructed
from codegrid.stage2_prior.options import CoarserOptions
from codegrid.stage2_prior.sequential_prior import SequentialPrior

COARSE, FINE, MARGIN = 4, 2, 2  # pixels of a side of a site, and beyond a coarse one that its code sees
LEVELS = 4  # of grey


class PyramidTokenizer(ModelFolder, nn.Module):
    """Means of squares of 4×4 pixels and their surroundings in four levels, and of 2×2 pixels what these leave over."""

    kind, data_variance = "tokenizer", 0.5
    quantizer = SimpleNamespace(entries=lambda grid: None)  # they are not listed

    def __init__(self, signal=None, **options):
        super().__init__()
        self.signal = Signal(**signal) if isinstance(signal, dict) else signal or Signal("image", 1, (12, 20))
        self.register_buffer("nothing", torch.zeros(1))
        height, width = self.signal.size
        self.layout = tuple(Grid((height // side, width // side), LEVELS) for side in (COARSE, FINE))
        self.config, self.provenance = {"signal": self.signal.as_json()}, {}

    def forward(self, x, given=NO_CONDITION, moment=None):
        codes = self.encode(x)
        return Reconstructed(self.decode(codes), codes, Losses({}, {}))

    def encode(self, x):
        around = F.avg_pool2d(x, COARSE + 2 * MARGIN, COARSE, MARGIN, count_include_pad=False)
        coarse = ((around[:, 0] + 1) / 2 * LEVELS).long().clamp(0, LEVELS - 1)
        left = F.avg_pool2d(x, FINE)[:, 0] - self._coarse(coarse)
        return coarse, ((left + 1) / 2 * LEVELS).long().clamp(0, LEVELS - 1)

    def _coarse(self, codes):
        """(b, h, w) codes → (b, 2h, 2w) means."""
        means = (codes + 0.5) / LEVELS * 2 - 1
        return means.repeat_interleave(COARSE // FINE, 1).repeat_interleave(COARSE // FINE, 2)

    def decode(self, codes, size=None, given=NO_CONDITION, noise=None):
        means = self._coarse(codes[0]) + (codes[1] + 0.5) / LEVELS * 2 - 1
        return means[:, None].repeat_interleave(FINE, 2).repeat_interleave(FINE, 3)

    def reconstruct(self, x):
        return self.decode(self.encode(x))

    def nll(self, x, codes, given=NO_CONDITION):
        return None

    def preview(self, codes, drawn):
        shown = [code.where(mask, torch.tensor(LEVELS // 2)) for code, mask in zip(codes, drawn, strict=True)]
        return self.decode(tuple(shown))

    def kept_sites(self, mask):
        unknown = (~mask).float()[None, None]
        coarse = F.max_pool2d(unknown, COARSE + 2 * MARGIN, COARSE, MARGIN)[0, 0] == 0
        return coarse, F.max_pool2d(unknown, FINE)[0, 0] == 0

    def after_step(self, step, seed):
        pass


class GivenPrior(SequentialPrior):
    """A prior whose codes depend on their label and on the coarser code above them alone."""

    options = CoarserOptions

    def __init__(self, layout, grids=None, num_classes=0, given_grids=(), given_layout=(), **options):
        super().__init__(layout, grids, num_classes, given_grids, given_layout, **options)
        above = self.given_layout[-1].num_embeddings if self.given_layout else 1
        self.table = nn.Parameter(torch.zeros(max(1, num_classes), above, self.layout[0].num_embeddings))

    def logits(self, codes, given=NO_CONDITION):
        (sites,), above = codes, torch.zeros_like(codes[0])
        if self.given_grids:
            coarser = self.coarser_codes(given, len(sites))[-1][:, None]
            above = F.interpolate(coarser.double(), sites.shape[1:], mode="nearest-exact")[:, 0].long()
        labels = self.label_rows(given, len(sites))[:, None, None]
        return (self.table[labels, above].movedim(-1, 1),)


codegrid.register("tokenizer", "toy-pyramid", PyramidTokenizer)
codegrid.register("prior", "toy-given", GivenPrior)


def make_pyramid(classes=2):
    """A pipeline of untrained priors, whose codes depend on their label and on the coarser code above them."""
    tokenizer = PyramidTokenizer().eval()
    priors = []
    for number in (0, 1):
        torch.manual_seed(number)
        given = {"given_grids": (0,), "given_layout": tokenizer.layout[:1]} if number else {}
        priors.append(GivenPrior(tokenizer.layout[number : number + 1], (number,), classes, **given).eval())
        nn.init.normal_(priors[-1].table, std=2)
        names = [str(label) for label in range(classes)]
        priors[-1].provenance = {"tokenizer_fingerprint": tokenizer.fingerprint(), "classes": names}
    return TwoStagePipeline(tokenizer, *priors)
