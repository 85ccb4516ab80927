"""Whole training commands on CIFAR-10: how much of the bare step's speed they keep, and what they learn.

Called by `python -m benchmarks.training --quality --data-root CIFAR`.
"""

import math
import subprocess
import sys
import time
from collections.abc import Iterable
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from codegrid.data.codes import CodeBatch, CodeDataset
from codegrid.data.images import evenly_spaced
from codegrid.data.loading import StepSampler, in_batches, load_batches
from codegrid.pipelines.training.trainer import lr_factor, set_lr
from codegrid.progress import progress_bar
from codegrid.stage2_prior.likelihood import cross_entropy
from codegrid.tensors import read_json

from .contenders import Sizes
from .interleaved import Timing
from .plain import PlainPrior


class CommandRun(NamedTuple):
    """One run of a training command."""

    loop: float  # items/s of the loop: median of its own reports
    whole: float  # items/s from starting the command to the saved and measured model
    provenance: dict


def compare_tokenizers(data_root: str, output: Path, of_tokenizer: dict[str, Timing], batch: int, steps: int) -> None:
    """Train stage 1 in bfloat16 and in float32, and export codes with the first."""
    data = ("--dataset", "imagefolder", "--data-root", data_root)
    print(f"\nstage 1, train-tokenizer on CIFAR-10, {steps:,} steps of {batch}")
    print(f"{'':10} {'loop/s':>8} {'% of step':>10} {'command/s':>9} {'% of step':>10} {'held-out error':>15}")
    for precision, name in (("bf16", "codegrid"), ("fp32", "codegrid, fp32")):
        flags = (*data, "--steps", steps, "--batch-size", batch, "--precision", precision)
        run = run_command("train_tokenizer", output / precision, steps * batch, *flags)
        step = batch / of_tokenizer[name].seconds
        error = run.provenance["metrics"]["reconstruction_error"]
        print(f"{precision:10} {run.loop:8,.0f} {run.loop / step:10.1%} {run.whole:9,.0f} {run.whole / step:10.1%} "
              f"{error:15.4f}", flush=True)  # fmt: skip
    for split in ("train", "test"):
        flags = (*data, "--tokenizer", output / "bf16", "--output", output / f"codes_{split}", "--split", split)
        call("export_codes", *flags)


def compare_priors(output: Path, minutes: float, step_seconds: float, sizes: Sizes) -> None:
    """Train stage 2 with the command, and the straightforward prior for as long as the command took."""
    print(f"\nstage 2, about {minutes:g} minutes each on the grids of that tokenizer")
    print(f"{'':38} {'minutes':>8} {'steps':>6} {'loop/s':>7} {'% of step':>10} {'command/s':>9} {'% of step':>10} "
          f"{'bits per code':>14}")  # fmt: skip
    steps, batch = max(10, int(60 * minutes / step_seconds)), sizes.grids
    flags = ("--codes", output / "codes_train", "--validation-codes", output / "codes_test", "--steps", steps,
             "--batch-size", batch, "--num-layers", sizes.num_layers)  # fmt: skip
    run = run_command("train_prior", output / "prior", steps * batch, *flags)
    taken, speed = steps * batch / run.whole, batch / step_seconds
    bits = run.provenance["history"][-1]["bits_per_code"]  # the last ones, as for the other prior, not the best
    print(f"{'train-prior':38} {taken / 60:8.2f} {steps:6} {run.loop:7,.0f} {run.loop / speed:10.1%} "
          f"{run.whole:9,.0f} {run.whole / speed:10.1%} {bits:14.3f}", flush=True)  # fmt: skip
    with get_context("spawn").Pool(1) as pool:  # a process with the system's defaults
        steps, seconds, bits = pool.apply(train_plain_prior, (output, taken, sizes))
    print(f"{'straightforward fp32, masked kernels':38} {seconds / 60:8.2f} {steps:6} {'':39} {bits:14.3f}")


def run_command(name: str, output: Path, items: int, *flags: object) -> CommandRun:
    """Run a training command."""
    start = time.perf_counter()
    said = call(name, *flags, "--output", output)
    whole = items / (time.perf_counter() - start)
    words = said.split()
    speeds = [float(words[i + 1]) for i, word in enumerate(words) if word in ("images/s", "grids/s")]
    return CommandRun(float(np.median(speeds)), whole, read_json(output / "config.json")["provenance"])


def call(name: str, *flags: object) -> str:
    """Run a command, and return its output. Its progress bar is shown as it runs."""
    command = [sys.executable, "-m", f"codegrid.pipelines.{name}", *map(str, flags)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def train_plain_prior(output: Path, seconds: float, sizes: Sizes) -> tuple[int, float, float]:
    """Train the straightforward prior for `seconds`, with the command's learning rates.

    Returns steps, seconds and bits per code.
    """
    training, validation = CodeDataset(output / "codes_train"), CodeDataset(output / "codes_test")
    torch.manual_seed(0)
    prior = PlainPrior(num_layers=sizes.num_layers).train()
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-3)
    start, steps, share = time.perf_counter(), 0, 0.0
    endless = StepSampler(len(training), sizes.grids, 0, 0, 10**9)
    for batch in progress_bar(load_batches(training, endless), "straightforward prior"):
        # the learning rate follows the clock, and reaches 0 when the time is over
        set_lr(optimizer, 1e-3 * lr_factor(int(10_000 * share), 10_000))
        optimizer.zero_grad()
        (codes,) = batch.codes
        F.cross_entropy(prior(codes, batch.labels), codes).backward()
        optimizer.step()
        steps += 1
        share = (time.perf_counter() - start) / seconds
        if share >= 1:
            break
    some = in_batches(evenly_spaced(len(validation), 1000), 250)  # as the command
    return steps, share * seconds, bits_per_code(prior.eval(), load_batches(validation, some))


@torch.no_grad()
def bits_per_code(prior: PlainPrior, batches: Iterable[CodeBatch]) -> float:
    """Return the cross-entropy of all codes in bits per code."""
    nats, count = 0.0, 0
    for batch in batches:
        (codes,) = batch.codes
        nats += float(cross_entropy(prior(codes, batch.labels), codes).double().sum())
        count += codes.numel()
    return nats / math.log(2) / count
