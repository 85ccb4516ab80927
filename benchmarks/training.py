"""Training and export against what limits them: the same network alone, and a straightforward implementation.

python -m benchmarks.training
python -m benchmarks.training --quality --data-root CIFAR

Stage 1: 3×32×32, batch 256, hidden 128, 2 residual blocks of 32, K 512, D 64, EMA. Stage 2: K 512, 64 channels, 15
layers, 8×8, batch 128, 10 classes. A step is forward, backward and Adam. Every contender runs in a process of its own,
all of them in turn; times are medians, memory is the peak beyond what the process held after its imports. The
straightforward implementations (`benchmarks/plain.py`) are in float32 and keep PyTorch's and the system's defaults.

Leaves a picture of how a step grows. --quality trains both stages on CIFAR (train/CLASS/*, test/CLASS/*): half an hour.
"""

import argparse
import tempfile
from multiprocessing import get_context
from pathlib import Path

from .contenders import (
    EXPORTED,
    GRID_BATCH,
    IMAGE_BATCH,
    encoder_pass,
    encoding_pass,
    export_pass,
    plain_prior_step,
    plain_tokenizer_step,
    prior_step,
    save_for_export,
    tokenizer_step,
)
from .growth import draw_growth, measure_growth, print_growth
from .interleaved import Contender, Timing, measure


def tokenizer_contenders() -> dict[str, Contender]:
    """Stage 1."""
    return {
        "codegrid": Contender(tokenizer_step),
        "the same without the quantizer": Contender(tokenizer_step, "bf16", False),
        "codegrid, fp32": Contender(tokenizer_step, "fp32"),
        "codegrid, memory given back": Contender(tokenizer_step, keeps_memory=False),
        "straightforward fp32": Contender(plain_tokenizer_step, keeps_memory=False),
        "the same without the quantizer, fp32": Contender(plain_tokenizer_step, False, keeps_memory=False),
    }


def prior_contenders() -> dict[str, Contender]:
    """Stage 2."""
    return {
        "codegrid": Contender(prior_step),
        "codegrid, fp32": Contender(prior_step, "fp32"),
        "codegrid, memory given back": Contender(prior_step, keeps_memory=False),
        "straightforward fp32, masked kernels": Contender(plain_prior_step, keeps_memory=False),
    }


def export_contenders(folder: str) -> dict[str, Contender]:
    """Images → codes."""
    save_for_export(folder)
    return {
        "the encoder alone, fp32": Contender(encoder_pass, folder),
        "encoding as the script does": Contender(encoding_pass, folder),
        "the whole script export_codes": Contender(export_pass, folder),
    }


def print_table(title: str, timings: dict[str, Timing], items: int, unit: str) -> None:
    """A row for each contender; the ratio says how many times as fast as it the first one is."""
    first = next(iter(timings.values()))
    print(f"\n{title}\n{'':38} {'ms':>8} {unit + '/s':>10} {'first is':>10} {'peak MB':>9}")
    for name, (seconds, megabytes) in timings.items():
        speed, ratio = items / seconds, seconds / first.seconds
        print(f"{name:38} {1e3 * seconds:8.1f} {speed:10,.0f} {ratio:9.2f}x {megabytes:9,.0f}", flush=True)


def main() -> None:
    """Print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="turns of every contender, three steps each")
    parser.add_argument("--picture", type=Path, default=Path("runs/growth.png"), help="where the picture goes")
    parser.add_argument("--quality", action="store_true", help="also the scripts on CIFAR-10, and what they learn")
    parser.add_argument("--data-root", help="CIFAR-10 as a folder of pictures, for --quality")
    parser.add_argument("--output", type=Path, default=Path("runs/training"), help="folder of the runs of --quality")
    parser.add_argument("--minutes", type=float, default=4, help="of training for each prior of --quality")
    flags = parser.parse_args()
    if flags.quality and not flags.data_root:
        parser.error("--quality needs --data-root: CIFAR-10 as a folder of pictures")
    if flags.quality and flags.output.exists():
        parser.error(f"{flags.output} exists already: choose another --output")
    of_tokenizer = measure(tokenizer_contenders(), flags.rounds)
    print_table("stage 1, a training step", of_tokenizer, IMAGE_BATCH, "images")
    of_prior = measure(prior_contenders(), flags.rounds)
    print_table("stage 2, a training step", of_prior, GRID_BATCH, "grids")
    with tempfile.TemporaryDirectory() as folder:
        of_export = measure(export_contenders(folder), max(3, flags.rounds // 2), steps=1)
    print_table(f"export of {EXPORTED:,} images", of_export, EXPORTED, "images")
    with get_context("spawn").Pool(1) as pool:
        seconds = pool.apply(measure_growth)
    print_growth(seconds)
    draw_growth(flags.picture, seconds)
    print(f"picture: {flags.picture}")
    if flags.quality:
        from .training_quality import compare_priors, compare_tokenizers

        compare_tokenizers(flags.data_root, flags.output, of_tokenizer)
        compare_priors(flags.output, flags.minutes, of_prior["codegrid"].seconds)


if __name__ == "__main__":
    main()
