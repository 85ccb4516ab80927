"""Training compared with the network alone, and with a straightforward implementation.

python -m benchmarks.training
python -m benchmarks.training --quality --data-root CIFAR

Stage 1: 3×32×32, batch 256, hidden 128, 2 residual blocks of 32, K 512, D 64, EMA. Stage 2: K 512, 64 channels, 15
layers, 8×8, batch 128, 10 classes. A step is forward, backward and Adam. Every contender runs in its own process, all
of them in turn; times are medians, memory is the peak beyond what the process held after its imports. The
straightforward implementations (`benchmarks/plain.py`) are in float32 and keep PyTorch's and the system's defaults.

Leaves a picture of how a step grows. --quality trains both stages on CIFAR (train/CLASS/*, test/CLASS/*): half an hour.
"""

import argparse
from multiprocessing import get_context
from pathlib import Path

from .contenders import (
    FULL,
    TOY,
    Sizes,
    bare_tokenizer_step,
    plain_prior_step,
    plain_tokenizer_step,
    prior_step,
    tokenizer_step,
)
from .growth import draw_growth, measure_growth, print_growth
from .interleaved import Contender, Here, Timing, measure

Contenders = dict[str, Contender | Here]


def tokenizer_contenders(make: type[Contender] | type[Here], sizes: Sizes) -> Contenders:
    """Return the contenders of stage 1."""
    batch = sizes.images
    return {
        "codegrid": make(tokenizer_step, "bf16", batch),
        "the same without the quantizer": make(bare_tokenizer_step, "bf16", batch),
        "codegrid, fp32": make(tokenizer_step, "fp32", batch),
        "codegrid, memory given back": make(tokenizer_step, "bf16", batch, keeps_memory=False),
        "straightforward fp32": make(plain_tokenizer_step, batch, keeps_memory=False),
        "the same without the quantizer, fp32": make(plain_tokenizer_step, batch, False, keeps_memory=False),
    }


def prior_contenders(make: type[Contender] | type[Here], sizes: Sizes) -> Contenders:
    """Return the contenders of stage 2."""
    grids, layers = sizes.grids, sizes.num_layers
    return {
        "codegrid": make(prior_step, "bf16", grids, layers),
        "codegrid, fp32": make(prior_step, "fp32", grids, layers),
        "codegrid, memory given back": make(prior_step, "bf16", grids, layers, keeps_memory=False),
        "straightforward fp32, masked kernels": make(plain_prior_step, grids, layers, keeps_memory=False),
    }


def print_table(title: str, timings: dict[str, Timing], items: int, unit: str) -> None:
    """Print a row for each contender, with the ratio by which the first one is faster."""
    first = next(iter(timings.values()))
    print(f"\n{title}\n{'':38} {'ms':>8} {unit + '/s':>10} {'first is':>10} {'peak MB':>9}")
    for name, (seconds, megabytes) in timings.items():
        speed, ratio = items / seconds, seconds / first.seconds
        print(f"{name:38} {1e3 * seconds:8.1f} {speed:10,.0f} {ratio:9.2f}x {megabytes:9,.0f}", flush=True)


def main() -> None:
    """Print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="turns of every contender, three steps each")
    parser.add_argument("--picture", type=Path, default=Path("runs/growth.png"), help="file for the picture")
    parser.add_argument("--quality", action="store_true", help="also run the commands on CIFAR-10, and compare errors")
    parser.add_argument("--data-root", help="CIFAR-10 as a folder of pictures, for --quality")
    parser.add_argument("--output", type=Path, default=Path("runs/training"), help="folder of the runs of --quality")
    parser.add_argument("--minutes", type=float, default=4, help="minutes of training for each prior of --quality")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to check that it runs; the times mean nothing")
    flags = parser.parse_args()
    sizes, rounds = (TOY, 1) if flags.toy else (FULL, flags.rounds)
    if flags.quality and not flags.data_root:
        parser.error("--quality needs --data-root: CIFAR-10 as a folder of pictures")
    if flags.quality and flags.output.exists():
        parser.error(f"{flags.output} exists already: choose another --output")
    make = Here if flags.toy else Contender
    of_tokenizer = measure(tokenizer_contenders(make, sizes), rounds)
    print_table("stage 1, a training step", of_tokenizer, sizes.images, "images")
    of_prior = measure(prior_contenders(make, sizes), rounds)
    print_table("stage 2, a training step", of_prior, sizes.grids, "grids")
    if flags.toy:
        seconds = measure_growth(rounds, 16)
    else:
        with get_context("spawn").Pool(1) as pool:
            seconds = pool.apply(measure_growth)
    print_growth(seconds)
    draw_growth(flags.picture, seconds)
    print(f"picture: {flags.picture}")
    if flags.quality:
        from .training_quality import compare_priors, compare_tokenizers

        compare_tokenizers(flags.data_root, flags.output, of_tokenizer, sizes.images, 20 if flags.toy else 2000)
        compare_priors(flags.output, flags.minutes, of_prior["codegrid"].seconds, sizes)


if __name__ == "__main__":
    main()
