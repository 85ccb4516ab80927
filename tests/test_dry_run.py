"""`dry_run`: what was found and what would be computed, and not a file more than before."""

import re

import pytest
from accelerate import Accelerator
from toy_objective import COMPUTE, Toy, TrainToy

from codegrid.pipelines.training.plan import expected_memory


@pytest.fixture
def flags(small_run, bars_file):
    data, tokenizer = ("--dataset", "npz", "--data-root", bars_file), ("--tokenizer", small_run / "tokenizer")
    network = ("--hidden-channels", 16, "--num-embeddings", 16, "--embedding-dim", 8)
    return {
        "train_tokenizer": (*data, *network, "--steps", 27, "--batch-size", 4),
        "train_prior": ("--codes", small_run / "codes", "--channels", 8, "--num-layers", 2, "--steps", 100),
        "export_codes": (*data, *tokenizer),
        "evaluate": (*data, *tokenizer),
        "plot": (*data, *tokenizer, "--what", "codes"),
        "sample": ("--run", small_run, "--num-samples", 30, "--batch-size", 8, "--device", "cpu"),
        "decode_codes": (*tokenizer, "--codes", small_run / "codes"),
    }


@pytest.mark.parametrize(
    "name,words",
    [
        ("train_tokenizer", [r"data: 54 images of 1×12×20; 6 to validate on", r"model: vqvae, [\d,]+ weights"]),
        ("train_tokenizer", ["steps: 27 of 4 images, 2.0 epochs", r"memory: about \d+ MB on cpu"]),
        ("train_prior", [r"data: \d+ grids of codes; \d+ to validate on", "steps: 100 of 128 grids", "memory: about"]),
        ("export_codes", ["54 images in 2 classes", "54 images to encode as 3×5 codes out of 16"]),
        ("evaluate", ["6 images in 2 classes", "6 images to measure on; 0 priors"]),
        ("plot", ["6 images", "figures: codes"]),
        ("sample", ["30 samples to draw as 3×5 codes out of 16, 8 at once", "backend: "]),
        ("decode_codes", ["54 items to decode into images of 1×12×20"]),
    ],
)
def test_a_dry_run_says_what_it_would_do_and_writes_nothing(name, words, flags, run_script, tmp_path):
    done = run_script(name, *flags[name], "--output", tmp_path / "out", "--dry-run")
    assert done.code == 0, done.err
    for each in words:
        assert re.search(each, done.out), done.out
    assert done.out.endswith("\ndry run: nothing was written\n") and not (tmp_path / "out").exists()


def test_a_dry_run_into_a_folder_of_another_run_is_refused(flags, run_script, small_run):
    done = run_script("train_tokenizer", *flags["train_tokenizer"], "--output", small_run / "tokenizer", "--dry-run")
    assert done.code == 2 and "was made with" in done.err


@pytest.mark.parametrize("batch_size,accumulate,times", [(8, 1, 1), (32, 1, 4), (32, 4, 1)])
def test_expected_memory_grows_with_what_is_at_once_in_it(batch_size, accumulate, times):
    def expect(**sizes):
        return expected_memory(Toy(), TrainToy(**sizes), COMPUTE, Accelerator(cpu=True))

    (model, least), (same, step) = expect(batch_size=8), expect(batch_size=batch_size, accumulate=accumulate)
    assert model == same > 0 and step == times * least > 0
