"""The examples run, and what they register keeps the contracts. `make slow` runs the whole ones, at toy size."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid import (
    NO_LABEL,
    Condition,
    Grid,
    InputError,
    TrainPrior,
    TrainTokenizer,
    TwoStagePipeline,
    load,
    registry,
    sample,
    train_prior,
    train_tokenizer,
)
from codegrid.registry import TABLES, load_plugin

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = {"steps": 2, "batch_size": 8, "precision": "fp32", "device": "cpu"}


@pytest.fixture
def plugged(monkeypatch):
    """Import an example as `--plugin` does; it is forgotten after the test."""
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.BUILT_IN})
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        load_plugin(str(EXAMPLES / f"{name}.py"))

    yield call
    for name in ("custom_quantizer", "custom_prior"):
        sys.modules.pop(name, None)


def test_the_example_of_a_quantizer_looks_up_what_the_decoder_sees(plugged):
    plugged("custom_quantizer")
    quantizer = TABLES["quantizer"]["signs"](sign_bits=3)
    latents = torch.randn(2, 3, 4, 5, requires_grad=True)
    vectors, codes, losses = quantizer(latents)
    assert torch.equal(quantizer.look_up(codes), vectors) and torch.equal(quantizer.encode(latents)[0], codes[0])
    assert torch.equal(quantizer.encode(quantizer.look_up(codes))[0], codes[0])
    assert quantizer.layout((4, 5)) == (Grid((4, 5), 8),) and quantizer.entries(0).unique(dim=0).shape == (8, 3)
    vectors.sum().backward()
    assert torch.allclose(latents.grad, 1 - latents.tanh().square(), atol=1e-6)
    assert losses.terms["balance_loss"] < quantizer(latents + 2).losses.terms["balance_loss"]


def test_the_example_of_a_quantizer_is_trained_and_loaded(plugged, bars_file, tmp_path):
    plugged("custom_quantizer")
    options = {"sign_bits": 3, "hidden_channels": 8}
    trained = train_tokenizer(
        TrainTokenizer(dataset=str(bars_file), output=str(tmp_path / "t"), quantizer="signs", options=options, **TINY)
    )
    tokenizer = load(trained.folder)
    assert tokenizer.layout == (Grid((3, 5), 8),) and trained.metrics["perplexity"] <= 8


@pytest.mark.parametrize("num_classes", [0, 2])
def test_no_code_of_the_example_of_a_prior_sees_itself_or_a_later_one(plugged, num_classes):
    plugged("custom_prior")
    torch.manual_seed(0)
    prior = TABLES["prior"]["recurrent"]((Grid((3, 4), 5),), num_classes=num_classes, width=8).eval()
    codes, changed = torch.zeros(1, 3, 4, dtype=torch.int64), torch.zeros(1, 3, 4, dtype=torch.int64)
    changed[0, 1, 2] = 4
    given = Condition(torch.tensor([1])) if num_classes else Condition()
    (before,), (after,) = prior.logits((codes,), given), prior.logits((changed,), given)
    differs = (before != after).any(1).flatten().tolist()
    assert before.shape == (1, 5, 3, 4) and differs == [site > 6 for site in range(12)]


def test_the_example_of_a_prior_is_trained_and_draws(plugged, small_run, tmp_path):
    plugged("custom_prior")
    trained = train_prior(
        TrainPrior(codes=str(small_run / "codes"), output=str(tmp_path / "p"), model="recurrent", **TINY)
    )
    prior = load(trained.folder)
    (codes,) = sample(prior, 3, labels=[0, 1, 1], seed=1, temperature=0.9)
    (again,) = sample(prior, 1, labels=[1], seed=1, first_index=2, temperature=0.9)
    assert codes.shape == (3, 3, 5) and torch.equal(codes[2:], again)
    images = load(small_run / "tokenizer").decode((codes,))
    completed = TwoStagePipeline(load(small_run / "tokenizer"), prior).complete(images, keep=1, labels=[0, 1, 1])
    (of_images,) = load(small_run / "tokenizer").encode(images.clamp(-1, 1))
    assert torch.equal(completed.codes[0][:, 0], of_images[:, 0])
    with pytest.raises(InputError, match="was only trained with labels"):
        prior.nll((codes,), Condition(torch.full((3,), NO_LABEL)))


def test_the_example_of_a_prior_refuses_several_grids(plugged):
    plugged("custom_prior")
    with pytest.raises(InputError, match="a recurrent prior learns one grid"):
        TABLES["prior"]["recurrent"]((Grid((3, 4), 5),) * 2)


@pytest.mark.slow
def test_the_minimal_example_leaves_its_picture(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\nimport minimal\nminimal.main(steps=(2, 2))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "digits.png").width > 500 and "nll" in done.stdout


def test_the_minimal_example_fits_on_a_page():
    assert len((EXAMPLES / "minimal.py").read_text(encoding="utf-8").splitlines()) <= 80


def draw_pictures(folder):
    """Two classes of pictures that differ in their colour, of two sizes."""
    random = np.random.default_rng(0)
    for name, colour in (("leaf", (60, 160, 70)), ("sky", (90, 150, 230))):
        (folder / name).mkdir(parents=True)
        for number in range(24):
            height, width = (20, 24) if number % 2 else (32, 28)
            spread = random.integers(-40, 40, (height // 4, width // 4, 1))
            picture = Image.fromarray(np.clip(spread + colour, 0, 255).astype(np.uint8))
            picture.resize((width, height)).save(folder / name / f"{number}.png")


NOTEBOOKS = {  # what stands in the place of the cell of parameters
    "digits": 'RUN, STEPS = "run", (2, 2)',
    "your_pictures": 'PICTURES, SIZE, RUN, STEPS = "pictures", 16, "run", (2, 2)',
}


def test_every_notebook_is_run_here():
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_keeps_no_output_that_is_larger_than_a_small_picture(name):
    assert (EXAMPLES / f"{name}.ipynb").stat().st_size < 200_000


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_its_first_cell_to_its_last(name, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    draw_pictures(tmp_path / "pictures")
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = NOTEBOOKS[name]
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [out.data for cell in notebook.cells for out in cell.get("outputs", ()) if "data" in out]
    assert sum("image/png" in data for data in shown) >= 3
    assert (tmp_path / "run" / "prior" / "model.safetensors").is_file() and any(tmp_path.glob("run/new-*/*.png"))
