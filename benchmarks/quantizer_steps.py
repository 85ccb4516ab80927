"""A training step of every quantizer, beside that of the EMA codebook and, where it has one, that of the package.

pip install vector-quantize-pytorch
python -m benchmarks.quantizer_steps

The quantizer alone, forward, backward and update, in float32, on the latents of 64 images of 8×8 sites. Times are
medians of interleaved repeats. `--toy` takes a few sites and does without the package, to check that the script runs.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from codegrid.codes import Moment
from codegrid.noise import Noise
from codegrid.stage1_vqvae.quantizers import QUANTIZERS

SIZES, TOY = (64, 8, 8), (2, 4, 4)  # batch, height, width
# row → quantizer and options; the defaults are a codebook of 512, or two, with D 64
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "ema": ("ema", {}),
    "ema, rotation": ("ema", {"estimator": "rotation"}),
    "gradient": ("gradient", {}),
    "clustered": ("clustered", {}),
    "clustered-gradient": ("clustered-gradient", {}),
    "sim": ("sim", {}),
    "gumbel": ("gumbel", {}),
    "fsq, 8 8 8": ("fsq", {}),
    "lfq, 512": ("lfq", {}),
    "lfq, 262,144": ("lfq", {"num_embeddings": 2**18}),
    "bsq, 512": ("bsq", {}),
    "bsq, 262,144": ("bsq", {"num_embeddings": 2**18}),
    "residual, 2 × 512": ("residual", {}),
    "product, 2 × 512": ("product", {}),
    "multiscale": ("multiscale", {}),
}
Step = Callable[[], object]


def our_step(kind: str, options: dict[str, Any], sizes: tuple[int, int, int]) -> Step:
    """Return a training step with latents as a channels_last encoder leaves them."""
    quantizer = QUANTIZERS[kind](**options).train()
    quantizer.layout(sizes[1:])
    shape, moment = (*sizes, quantizer.embedding_dim), Moment(100, 1000, Noise(0, 0, sizes[0]))
    latents = torch.randn(shape).permute(0, 3, 1, 2).requires_grad_()
    gradient = torch.randn(shape).permute(0, 3, 1, 2)

    def step() -> None:
        vectors, _, losses = quantizer(latents, moment)
        torch.autograd.backward([vectors, *losses.terms.values()], [gradient, *[None] * len(losses.terms)])
        quantizer.after_step(100, 0)
        latents.grad = None
        for weight in quantizer.parameters():
            weight.grad = None

    return step


def package() -> dict[str, tuple[Any, int]]:
    """Return the package's modules that do the same, by row, with their D."""
    import vector_quantize_pytorch as theirs

    plain: dict[str, Any] = {"threshold_ema_dead_code": 0, "rotation_trick": False}
    ema: dict[str, Any] = {"codebook_size": 512, "decay": 0.99, "commitment_weight": 0.25, **plain}
    by_gradient = {**ema, "learnable_codebook": True, "ema_update": False}
    return {
        "ema": (theirs.VectorQuantize(dim=64, **ema), 64),
        "ema, rotation": (theirs.VectorQuantize(dim=64, **{**ema, "rotation_trick": True}), 64),
        "gradient": (theirs.VectorQuantize(dim=64, **by_gradient), 64),
        "sim": (theirs.SimVQ(dim=64, codebook_size=512, rotation_trick=False), 64),
        "fsq, 8 8 8": (theirs.FSQ([8, 8, 8]), 3),
        "lfq, 512": (theirs.LFQ(codebook_size=512), 9),
        "bsq, 512": (theirs.LFQ(codebook_size=512, spherical=True), 9),
        "residual, 2 × 512": (theirs.ResidualVQ(dim=64, num_quantizers=2, **ema), 64),
        "product, 2 × 512": (theirs.GroupedResidualVQ(dim=64, groups=2, num_quantizers=1, **ema), 64),
    }


def their_step(module: Any, dim: int, sizes: tuple[int, int, int]) -> Step:
    """Return a training step of the package, on latents in the layout that it prefers."""
    module.train()
    shape = (sizes[0], sizes[1] * sizes[2], dim)
    latents, gradient = torch.randn(shape).requires_grad_(), torch.randn(shape)

    def step() -> None:
        vectors, *others = module(latents)
        losses = [tensor.sum() for tensor in others if tensor.is_floating_point() and tensor.requires_grad]
        torch.autograd.backward([vectors, *losses], [gradient, *[None] * len(losses)])
        latents.grad = None
        module.zero_grad()

    return step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="interleaved repeats of every step")
    parser.add_argument("--toy", action="store_true", help="a few sites, without the package")
    flags = parser.parse_args()
    torch.manual_seed(0)
    sizes = TOY if flags.toy else SIZES
    modules = {} if flags.toy else package()
    steps = {(name, "ours"): our_step(*row, sizes) for name, row in ROWS.items()}
    steps |= {(name, "theirs"): their_step(*module, sizes) for name, module in modules.items()}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for _ in range(flags.repeats + 2):
        for key, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[key].append(time.perf_counter() - start)
    middle = {key: 1e3 * median(times[2:]) for key, times in seconds.items()}
    print(f"{'quantizer':20} {'ms':>8} {'× ema':>7} {'package, ms':>12} {'× ours':>7}")
    for name in ROWS:
        ours, theirs = middle[name, "ours"], middle.get((name, "theirs"))
        beside = f"{'–':>12} {'–':>7}" if theirs is None else f"{theirs:12.2f} {theirs / ours:7.2f}"
        print(f"{name:20} {ours:8.2f} {ours / middle['ema', 'ours']:7.2f} {beside}")


if __name__ == "__main__":
    main()
