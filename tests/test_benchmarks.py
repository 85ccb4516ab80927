"""Every documented benchmark runs, at toy size: its figures then say nothing. `make slow` runs these."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
# what each needs beside --toy; {folder} is a new one, {pictures} and {bars} are data sets, {run} was trained on bars
BENCHMARKS = {
    "busy": [],
    "codebooks": ["--data-root", "{pictures}", "--output", "{folder}/runs"],
    "demo_quality": ["--run", "{run}", "--dataset", "npz", "--data-root", "{bars}"],
    "export": ["--data-root", "{pictures}"],
    "faults": [],
    "gpu": [],
    "liveness": ["--dataset", "npz", "--data-root", "{bars}", "--output", "{folder}/runs", "--batch-sizes", "32"],
    "quantizer": [],
    "quantizer_priors": ["--data-root", "{pictures}", "--runs", "{folder}/runs", "--only", "ema-512", "residual-3x8"],
    "sampling": [],
    "saving": [],
    "scripts": [],
    "training": ["--picture", "{folder}/growth.png", "--quality", "--data-root", "{pictures}",
                 "--output", "{folder}/runs", "--minutes", "0.01"],
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


def documented():
    """The benchmarks that say how they are run."""
    return {
        path.stem for path in (ROOT / "benchmarks").glob("*.py") if f"-m benchmarks.{path.stem}" in path.read_text()
    }


def test_every_documented_benchmark_is_tried_here():
    assert documented() == {*BENCHMARKS, *ELSEWHERE}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_runs_at_toy_size(name, pictures, bars_file, small_run, tmp_path):
    places = {"folder": tmp_path, "pictures": pictures, "bars": bars_file, "run": small_run}
    flags = [flag.format(**places) for flag in BENCHMARKS[name]]
    result = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--toy", *flags],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=900,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip()
