"""The training scripts as a whole on CIFAR-10: how much of the bare step's speed they keep, and what they learn.

Called by `python -m benchmarks.training --quality --data-root CIFAR`.
"""

import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from codegrid.data import CodeDataset
from codegrid.data.images import evenly_spaced
from codegrid.data.loading import StepSampler, in_batches, load_batches
from codegrid.pipelines.evaluation.reconstruction import measure_prior
from codegrid.pipelines.training.loop import lr_factor, set_lr
from codegrid.tensors import read_json

from .contenders import GRID_BATCH, IMAGE_BATCH
from .interleaved import Timing
from .plain import PlainPrior

TOKENIZER_STEPS = 2000


class ScriptRun(NamedTuple):
    """One run of a training script."""

    loop: float  # items/s of the loop: median of its own reports
    whole: float  # items/s from the command to the saved and measured model
    provenance: dict


def compare_tokenizers(data_root: str, output: Path, of_tokenizer: dict[str, Timing]) -> None:
    """Train stage 1 in bfloat16 and in float32, and export the codes of the first."""
    data = ("--dataset", "imagefolder", "--data-root", data_root)
    print(f"\nstage 1, train_tokenizer on CIFAR-10, {TOKENIZER_STEPS:,} steps of {IMAGE_BATCH}")
    print(f"{'':10} {'loop/s':>8} {'% of step':>10} {'script/s':>9} {'% of step':>10} {'held-out error':>15}")
    for precision, name in (("bf16", "codegrid"), ("fp32", "codegrid, fp32")):
        flags = (*data, "--steps", TOKENIZER_STEPS, "--batch-size", IMAGE_BATCH, "--precision", precision)
        run = run_script("train_tokenizer", output / precision, TOKENIZER_STEPS * IMAGE_BATCH, *flags)
        step = IMAGE_BATCH / of_tokenizer[name].seconds
        error = run.provenance["figures"]["reconstruction_error"]
        print(f"{precision:10} {run.loop:8,.0f} {run.loop / step:10.1%} {run.whole:9,.0f} {run.whole / step:10.1%} "
              f"{error:15.4f}", flush=True)  # fmt: skip
    for split in ("train", "test"):
        flags = (*data, "--tokenizer", output / "bf16", "--output", output / f"codes_{split}", "--split", split)
        call("export_codes", *flags)


def compare_priors(output: Path, minutes: float, step_seconds: float) -> None:
    """Train stage 2 with the script, and the straightforward prior for as long as the script took."""
    print(f"\nstage 2, about {minutes:g} minutes each on the 50,000 grids of that tokenizer")
    print(f"{'':38} {'minutes':>8} {'steps':>6} {'loop/s':>7} {'% of step':>10} {'script/s':>9} {'% of step':>10} "
          f"{'bits per code':>14}")  # fmt: skip
    steps = int(60 * minutes / step_seconds)
    flags = ("--codes", output / "codes_train", "--validation-codes", output / "codes_test", "--steps", steps,
             "--batch-size", GRID_BATCH)  # fmt: skip
    run = run_script("train_prior", output / "prior", steps * GRID_BATCH, *flags)
    taken, speed = steps * GRID_BATCH / run.whole, GRID_BATCH / step_seconds
    bits = run.provenance["history"][-1]["bits_per_code"]  # the last, as of the other, and not the best
    print(f"{'train_prior':38} {taken / 60:8.2f} {steps:6} {run.loop:7,.0f} {run.loop / speed:10.1%} "
          f"{run.whole:9,.0f} {run.whole / speed:10.1%} {bits:14.3f}", flush=True)  # fmt: skip
    with get_context("spawn").Pool(1) as pool:  # a process with the system's defaults
        steps, seconds, bits = pool.apply(train_plain_prior, (output, taken))
    print(f"{'straightforward fp32, masked kernels':38} {seconds / 60:8.2f} {steps:6} {'':39} {bits:14.3f}")


def run_script(name: str, output: Path, items: int, *flags: object) -> ScriptRun:
    """Run a training script from the command line."""
    start = time.perf_counter()
    said = call(name, *flags, "--output", output)
    whole = items / (time.perf_counter() - start)
    words = said.split()
    speeds = [float(words[i + 1]) for i, word in enumerate(words) if word in ("images/s", "grids/s")]
    return ScriptRun(float(np.median(speeds)), whole, read_json(output / "config.json")["provenance"])


def call(name: str, *flags: object) -> str:
    """Run a script: what it printed. Its bar is shown as it goes."""
    command = [sys.executable, "-m", f"pipelines.{name}", *map(str, flags)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def train_plain_prior(output: Path, seconds: float) -> tuple[int, float, float]:
    """The straightforward prior for so long, with the script's learning rate: steps, seconds, bits per code."""
    training, held_out = CodeDataset(output / "codes_train"), CodeDataset(output / "codes_test")
    torch.manual_seed(0)
    prior = PlainPrior().train()
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-3)
    start, steps, share = time.perf_counter(), 0, 0.0
    endless = StepSampler(len(training), GRID_BATCH, 0, 0, 10**9)
    for batch in tqdm(load_batches(training, endless), "straightforward prior"):
        # the learning rate follows the clock: at the end of the time it is 0
        set_lr(optimizer, 1e-3 * lr_factor(int(10_000 * share), 10_000))
        optimizer.zero_grad()
        F.cross_entropy(prior(batch.codes, batch.labels), batch.codes).backward()
        optimizer.step()
        steps += 1
        share = (time.perf_counter() - start) / seconds
        if share >= 1:
            break
    some = in_batches(evenly_spaced(len(held_out), 1000), 250)  # as the script
    bits = measure_prior(prior.eval(), load_batches(held_out, some))["bits_per_code"]
    return steps, share * seconds, bits
