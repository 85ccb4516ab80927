"""The training scripts as a whole on CIFAR-10: how much of the bare step's speed they keep, and what they learn.

Called by `python -m benchmarks.training --quality --data-root CIFAR`.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import CodeDataset
from pipelines.batches import StepSampler, in_order, load_batches
from pipelines.measure import measure_prior
from pipelines.training import lr_factor, set_lr
from storage.tensors import read_json

from .contenders import GRID_BATCH, IMAGE_BATCH
from .interleaved import Timing
from .plain import PlainPrior

TOKENIZER_STEPS = 2000


class ScriptRun(NamedTuple):
    """One run of a training script."""

    loop: float  # items/s of the loop: median of its own reports
    whole: float  # items/s from the command to the saved and measured model
    provenance: dict


def compare_what_is_learnt(
    data_root: str, output: Path, minutes: float, of_tokenizer: dict[str, Timing], of_prior: dict[str, Timing]
) -> None:
    """Train both stages with the scripts and beside them, and print what came of it."""
    shutil.rmtree(output, ignore_errors=True)
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
        tokenizer, codes = output / "bf16", output / f"codes_{split}"
        call("export_codes", *data, "--tokenizer", tokenizer, "--output", codes, "--split", split)

    print(f"\nstage 2, {minutes:g} minutes on the 50,000 grids of that tokenizer")
    print(f"{'':38} {'steps':>6} {'loop/s':>8} {'% of step':>10} {'script/s':>9} {'bits per code':>14}")
    seconds = of_prior["codegrid"].seconds
    steps = int(60 * minutes / seconds)
    flags = ("--codes", output / "codes_train", "--validation-codes", output / "codes_test", "--steps", steps,
             "--batch-size", GRID_BATCH)  # fmt: skip
    run = run_script("train_prior", output / "prior", steps * GRID_BATCH, *flags)
    step = GRID_BATCH / seconds
    bits = min(figures["bits_per_code"] for figures in run.provenance["history"])
    print(f"{'train_prior':38} {steps:6} {run.loop:8,.0f} {run.loop / step:10.1%} {run.whole:9,.0f} {bits:14.3f}")
    steps, bits = train_plain_prior(output, 60 * minutes)
    print(f"{'straightforward fp32, masked kernels':38} {steps:6} {'':29} {bits:14.3f}")


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


def train_plain_prior(output: Path, seconds: float) -> tuple[int, float]:
    """The straightforward prior for so long, with the script's learning rate: steps, and held-out bits per code."""
    training, held_out = CodeDataset(output / "codes_train"), CodeDataset(output / "codes_test")
    torch.manual_seed(0)
    prior = PlainPrior().train()
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-3)
    last = 1_000_000
    start, pace, steps = time.perf_counter(), 0.0, last
    batches = load_batches(training, StepSampler(len(training), GRID_BATCH, 0, 0, last))
    for done, batch in enumerate(tqdm(batches, "straightforward prior", last), 1):
        set_lr(optimizer, 1e-3 * lr_factor(done - 1, steps))
        optimizer.zero_grad()
        F.cross_entropy(prior(batch.codes, batch.labels), batch.codes).backward()
        optimizer.step()
        if done == 10:  # now it is known how many steps there will be, for the learning rate to end at 0
            pace = (time.perf_counter() - start) / 10
            steps = int(seconds / pace)
        if done >= steps:
            break
    some = in_order(len(held_out), 250)[:: max(1, len(held_out) // 2000)]
    return done, measure_prior(prior.eval(), load_batches(held_out, some))["bits_per_code"]
