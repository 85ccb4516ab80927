"""Small quantizers of every kind, latents for them, and training steps: what the tests of quantizers share.

Shapes: b batch, D embedding_dim, K num_embeddings.
"""

from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch.utils._python_dispatch import TorchDispatchMode

from codegrid.codes import Moment
from codegrid.noise import Noise
from codegrid.pipelines.running.options import resolve_options
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.stage1_vqvae.quantizers import QUANTIZERS
from codegrid.stage1_vqvae.quantizers.clustered import Clustered
from codegrid.stage1_vqvae.quantizers.codebook import CodebookQuantizer


@cache
def options_of(name):
    """The names of all options that a quantizer has, with those of its parts."""
    return resolve_options(TrainTokenizer(output="", quantizer=name)).keys()


def fitting(name, **options):
    """Those of the options that a quantizer has."""
    return {key: value for key, value in options.items() if key in options_of(name)}


# each with D 4; those with a codebook have K 8
SMALL = {name: fitting(name, num_embeddings=8, embedding_dim=4) for name in QUANTIZERS}
SMALL["fsq"] = {"fsq_levels": (3, 4, 5, 2)}
SMALL["lfq"] = SMALL["bsq"] = {"num_embeddings": 16}
SMALL["residual"] |= {"num_quantizers": 3}
CASES = {name: (name, {}) for name in QUANTIZERS} | {
    "residual of gradient": ("residual", {"codebook": "gradient"}),
    "residual of clustered-gradient": ("residual", {"codebook": "clustered-gradient"}),
    "residual in groups": ("residual", {"num_quantizers": 2, "num_groups": 2}),
    "residual shared": ("residual", {"shared": True}),
    "fsq in two grids": ("fsq", {"num_factors": 2}),
}
CASES["multiscale of gradient"] = ("multiscale", {"codebook": "gradient"})
# those that search a codebook; those of them that store each entry by itself; those that mix entries in training
SEARCHING = [name for name, kind in QUANTIZERS.items() if issubclass(kind, CodebookQuantizer)]
CODEBOOKS = [name for name in SEARCHING if "codebook" in QUANTIZERS[name](**SMALL[name]).state_dict()]
CLUSTERED = [name for name in CODEBOOKS if issubclass(QUANTIZERS[name], Clustered)]
MIXING = [case for case, (name, _) in CASES.items() if hasattr(QUANTIZERS[name], "soften")]


def build(case, **options):
    """A small quantizer in train mode, whose entries, if it has any, lie apart; options that it lacks are left out."""
    name, own = CASES[case]
    options = fitting(name, **options)
    torch.manual_seed(0)
    quantizer = QUANTIZERS[name](**{**SMALL[name], **own, **options}).train()
    for key, value in quantizer.state_dict().items():
        if key.endswith(("codebook", "coefficients")):
            value.copy_(torch.randn(value.shape) * 2)
    return quantizer


def draw_latents(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moment(step=0, first=0, count=1):
    return Moment(step, 1000, Noise(0, first, count))


def train_step(quantizer, *pieces, step=10, seed=0):
    """Take a step of no optimizer, in pieces; returns what came of the last piece."""
    first = 0
    for latents in pieces:
        result = quantizer(latents, moment(step, first, len(latents)))
        first += len(latents)
    quantizer.after_step(step, seed)
    return result


def state_of(quantizer):
    return {key: value.clone() for key, value in quantizer.state_dict().items()}


def assert_same_state(quantizer, state):
    assert all(torch.equal(value, state[key]) for key, value in quantizer.state_dict().items())


def flatten(latents):
    return rearrange(latents.detach(), "b d ... -> (b ...) d")


def measure_gaps(a, b, distance):
    """Return the gaps (n, m) between rows of a (n, D) and b (m, D), the slow way."""
    if distance == "cosine":
        return 1 - F.cosine_similarity(a[:, None], b[None], dim=2)
    return torch.stack([(row - b).norm(dim=1) for row in a])


def is_row_of(vectors, rows):
    """Return for each of vectors (m, D) whether it is bitwise one of rows (n, D)."""
    return (vectors[:, None] == rows[None]).all(2).any(1)


class LargestTensor(TorchDispatchMode):
    """Watches all operations for the largest tensor that one of them makes, and counts them."""

    numel = count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result
