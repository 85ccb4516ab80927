"""Every documented benchmark runs, at toy size: its figures then say nothing. `make slow` runs these."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_emoji import draw_emoji

ROOT = Path(__file__).parent.parent
# what each needs beside --toy; {folder} is a new one, {run} was trained on bars, the others are data sets
BENCHMARKS = {
    "bound": ["--data-root", "{pictures}", "--output", "{folder}/runs"],
    "busy": [],
    "compression": ["--cifar", "{pictures}", "--output", "{folder}/runs"],
    "codebooks": ["--data-root", "{pictures}", "--output", "{folder}/runs"],
    "demo_quality": ["--run", "{run}", "--dataset", "npz", "--data-root", "{bars}"],
    "emoji": ["--data-root", "{emoji}", "--output", "{folder}/runs"],
    "export": ["--data-root", "{pictures}"],
    "faults": [],
    "fidelity": ["--data-root", "{pictures}", "--output", "{folder}/runs"],
    "gpu": [],
    "hierarchies": ["--data-root", "{pictures}", "--output", "{folder}/runs"],
    "liveness": ["--dataset", "npz", "--data-root", "{bars}", "--output", "{folder}/runs", "--batch-sizes", "32"],
    "places": ["--output", "{folder}/runs"],
    "priors": ["--data-root", "{pictures}", "--output", "{folder}/runs"],
    "quantizer": [],
    "quantizer_steps": [],
    "quantizer_priors": ["--data-root", "{pictures}", "--runs", "{folder}/runs", "--only", "ema-512", "residual-3x8"],
    "sampling": [],
    "sampling of scales": ["--model", "next-scale"],
    "sampling in any order": ["--model", "maskgit"],
    "saving": [],
    "scripts": [],
    "sharpness": ["--data-root", "{pictures}", "--output", "{folder}/runs"],
    "speech": ["--output", "{folder}/runs"],
    "training": ["--picture", "{folder}/growth.png", "--quality", "--data-root", "{pictures}",
                 "--output", "{folder}/runs", "--minutes", "0.01"],
    "wavenet": ["--rounds", "1"],
    "video": ["--output", "{folder}/runs"],
}  # fmt: skip
ELSEWHERE = {"screenshots"}  # needs a browser

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of 32×32 pictures, a train and a test part."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
                coarse.resize((32, 32)).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """The packages of the emoji data set."""
    return draw_emoji(tmp_path_factory.mktemp("emoji"))


def documented():
    """The benchmarks that say how they are run."""
    return {
        path.stem for path in (ROOT / "benchmarks").glob("*.py") if f"-m benchmarks.{path.stem}" in path.read_text()
    }


def test_every_documented_benchmark_is_tried_here():
    assert documented() == {name.split()[0] for name in BENCHMARKS} | ELSEWHERE


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_runs_at_toy_size(name, pictures, emoji, bars_file, small_run, tmp_path):
    places = {"folder": tmp_path, "pictures": pictures, "emoji": emoji, "bars": bars_file, "run": small_run}
    flags = [flag.format(**places) for flag in BENCHMARKS[name]]
    result = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name.split()[0]}", "--toy", *flags],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=900,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip()


def estimate_bound(logits, log_p, codes):
    """The bound of samples (n, m) of two bits, and what VIMCO goes by, (n,) each; log p(x, h) of the codes 0 to 3."""
    from benchmarks.latent_models import vimco

    bits = torch.stack([codes % 2, codes // 2], dim=-1)
    log_q = -torch.nn.functional.binary_cross_entropy_with_logits(
        logits[:, None].expand(-1, codes.shape[1], -1), bits.double(), reduction="none"
    ).sum(-1)  # fmt: skip
    bound, gain = vimco(log_p[codes] - log_q)
    return log_q, bound, gain


def test_vimco_goes_along_the_exact_gradient_with_less_noise_than_without_its_baselines():
    torch.manual_seed(0)
    log_p, start, n = torch.tensor([-3.0, -0.5, -2.0, -4.0]).double(), torch.tensor([0.4, -0.7]).double(), 100_000
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)  # all triples of samples
    logits = start.clone().requires_grad_()
    log_q, bound, _ = estimate_bound(logits.expand(64, -1), log_p, every)
    (exact,) = torch.autograd.grad((log_q.sum(1).exp() * bound).sum(), logits)

    codes = (torch.rand(n, 3, 2) < start.sigmoid()).long() @ torch.tensor([1, 2])
    errors = []
    for with_baselines in (True, False):
        logits = start.repeat(n, 1).requires_grad_()
        log_q, bound, gain = estimate_bound(logits, log_p, codes)
        gain = gain if with_baselines else bound.detach()[:, None]
        (found,) = torch.autograd.grad((bound + (gain * log_q).sum(1)).sum(), logits)
        errors.append(found.std(0) / n**0.5)
        assert ((found.mean(0) - exact).abs() < 3.5 * errors[-1]).all()
    assert (errors[0] < 0.7 * errors[1]).all()
