"""Small priors of every name in the table, in float64; those that draw step by step see all codes before."""

from importlib.util import find_spec

import torch

from codegrid.codes import Condition, Grid
from codegrid.registry import BUILT_IN, TABLES
from codegrid.stage2_prior.options import CoarserOptions, TextOptions

# wide enough that no site has all its features cut off by the ReLU of the head
SMALL = {
    "pixelcnn": {"channels": 24, "num_layers": 4, "first_kernel": 5, "kernel": 5, "dropout": 0.0},
    "pixelsnail": {
        "channels": 16, "num_blocks": 1, "layers_per_block": 1, "num_heads": 2, "head_channels": 4,
        "feature_dropout": 0.0,
    },
    "transformer": {"channels": 16, "num_layers": 2, "num_heads": 2, "feature_dropout": 0.0},
    "gpt": {"channels": 16, "num_layers": 2, "num_heads": 2, "feature_dropout": 0.0},
    "wavenet": {"channels": 8, "skip_channels": 16, "layers_per_cycle": 6, "num_cycles": 1, "feature_dropout": 0.0},
    "video": {
        "channels": 24, "num_layers": 4, "first_kernel": 5, "kernel": 5, "dropout": 0.0, "context_frames": 2,
        "frame_channels": 6, "condition_channels": 8, "condition_blocks": 1,
    },
    "next-scale": {"channels": 16, "num_layers": 2, "num_heads": 2, "feature_dropout": 0.0},
    "maskgit": {"channels": 16, "num_layers": 2, "num_heads": 2, "feature_dropout": 0.0},
    "diffusion": {"channels": 8, "num_layers": 1, "num_heads": 2, "num_inference_steps": 4},
}  # fmt: skip
# those that the installed packages suffice for
ALL = [name for name in BUILT_IN["prior"] if find_spec(getattr(TABLES["prior"][name], "package", "torch"))]
LAYOUTS = {}  # by name: grids that a prior can learn, if it cannot learn two codes a site
NAMES = [name for name in ALL if hasattr(TABLES["prior"][name], "logits")]  # the others draw in any order
MASKED = [name for name in ALL if hasattr(TABLES["prior"][name], "hidden_logits")]
CONDITIONED = [name for name in NAMES if issubclass(TABLES["prior"].options(name), CoarserOptions)]
TEXTUAL = [name for name in ALL if issubclass(TABLES["prior"].options(name), TextOptions)]


def build_prior(name, sizes=(8,), shape=(4, 5), num_classes=0, decided=1.0, layout=(), **options):
    """A prior of a name in the table. Its logits are `decided` times as far apart as those of a new one.

    It learns grids of a shape and of the `sizes` of their codebooks, or those of a whole `layout`.
    """
    torch.manual_seed(0)
    options = {"label_dropout": 0.0, **SMALL[name], **options}
    layout = layout or [Grid(shape, size) for size in sizes]
    prior = TABLES["prior"][name](layout, num_classes=num_classes, **options).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            if not parameter.any():  # what is 0 at first hides all that it is multiplied with
                parameter.normal_(0, 0.25)
        for head in getattr(prior.network, "heads", ()):
            head[-1].weight *= decided
    return prior.eval()


def judge(prior, codes, given, noise):
    """What a prior says of codes: their nats, or without a likelihood its own measure of each sample."""
    return (prior.errors(codes, given, noise),) if prior.likelihood == "none" else prior.nll(codes, given, noise)


def random_codes(prior, count=2):
    return tuple(torch.randint(0, grid.num_embeddings, (count, *grid.shape)) for grid in prior.layout)


def earlier_frames(prior, count):
    """A condition of earlier frames and actions, for a prior that takes them; for others it is empty."""
    frames = getattr(prior, "context_frames", 0)
    codes = [random_codes(prior, count) for _ in range(frames)]
    actions = torch.randint(0, prior.num_actions, (count, frames)) if frames and prior.num_actions else None
    return Condition(codes=tuple(grid for frame in codes for grid in frame), actions=actions)


@torch.no_grad()
def codes_that_see(prior, codes):
    """For each code (*site, grid): those, in the same way, whose logits change with it. One batch of all."""
    places = [(*site, k) for k, grid in enumerate(codes) for site in torch.ones(grid.shape[1:]).nonzero().tolist()]
    changed = [grid.repeat(len(places), *[1] * (grid.dim() - 1)) for grid in codes]
    for i, (*site, k) in enumerate(places):
        changed[k][(i, *site)] = (changed[k][(i, *site)] + 1) % prior.layout[k].num_embeddings
    pairs = zip(prior.logits(tuple(changed)), prior.logits(codes), strict=True)
    differ = [((new - old).abs().amax(1) > 1e-12).flatten(1) for new, old in pairs]  # (changed, sites) of each grid
    return {
        place: {other for other, differs in zip(places, row, strict=True) if differs}
        for place, row in zip(places, torch.cat(differ, 1).tolist(), strict=True)
    }


def codes_of_later_steps(prior):
    """For each code (*site, grid): those, in the same way, that the prior draws in a later step."""
    sites = [torch.ones(grid.shape).nonzero().tolist() for grid in prior.layout]
    order = prior.steps(Condition(), 1, "torch").order
    step = {(*sites[grid][site], grid): number for number, (grid, here) in enumerate(order) for site in here}
    return {place: {other for other in step if step[other] > step[place]} for place in step}
