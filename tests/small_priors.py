"""Small priors of every name in the table, that draw code by code and see all codes before, in float64."""

import torch

from codegrid.codes import Grid
from codegrid.registry import BUILT_IN, TABLES
from codegrid.stage2_prior.options import CoarserOptions

# wide enough that no site has all its features cut off by the ReLU of the head
SMALL = {
    "pixelcnn": {"channels": 24, "num_layers": 4, "first_kernel": 5, "kernel": 5, "dropout": 0.0},
    "pixelsnail": {
        "channels": 16, "num_blocks": 1, "layers_per_block": 1, "num_heads": 2, "head_channels": 4,
        "feature_dropout": 0.0,
    },
    "maskgit": {"width": 16, "num_layers": 2, "num_heads": 2, "dropout": 0.0},
}  # fmt: skip
ALL = list(BUILT_IN["prior"])
NAMES = [name for name in ALL if hasattr(TABLES["prior"][name], "logits")]  # the others draw in any order
MASKED = [name for name in ALL if hasattr(TABLES["prior"][name], "hidden_logits")]
CONDITIONED = [name for name in NAMES if issubclass(TABLES["prior"].options(name), CoarserOptions)]


def build_prior(name, sizes=(8,), shape=(4, 5), num_classes=0, decided=1.0, **options):
    """A prior of a name in the table. Its logits are `decided` times as far apart as those of a new one."""
    torch.manual_seed(0)
    options = {"label_dropout": 0.0, **SMALL[name], **options}
    layout = [Grid(shape, size) for size in sizes]
    prior = TABLES["prior"][name](layout, num_classes=num_classes, **options).double()
    with torch.no_grad():
        for head in prior.network.heads:
            head[-1].weight *= decided
    return prior.eval()


def random_codes(prior, count=2):
    return tuple(torch.randint(0, grid.num_embeddings, (count, *grid.shape)) for grid in prior.layout)


@torch.no_grad()
def codes_that_see(prior, codes):
    """For each code (row, column, grid): those, in the same way, whose logits change with it. One batch of all."""
    sites = torch.ones(codes[0].shape[1:]).nonzero().tolist()
    places = [(row, column, k) for k in range(len(codes)) for row, column in sites]
    changed = [grid.expand(len(places), -1, -1).clone() for grid in codes]
    for i, (row, column, k) in enumerate(places):
        changed[k][i, row, column] = (changed[k][i, row, column] + 1) % prior.layout[k].num_embeddings
    pairs = zip(prior.logits(tuple(changed)), prior.logits(codes), strict=True)
    differ = torch.stack([(new - old).abs().amax(1) > 1e-12 for new, old in pairs], -1)  # (changed, h, w, q)
    return {place: set(map(tuple, differ[i].nonzero().tolist())) for i, place in enumerate(places)}
