"""The scripts as a user runs them: what they leave, and what they say to bad input."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_PRIOR, TINY_TOKENIZER
from PIL import Image

from codegrid.data import CodeDataset
from codegrid.data.images import to_uint8
from codegrid.pipelines import TwoStagePipeline
from codegrid.stage1_vqvae import VQVAE

ROOT = Path(__file__).parent.parent
SCRIPTS = [
    "train_tokenizer",
    "export_codes",
    "train_prior",
    "sample",
    "decode_codes",
    "evaluate",
    "plot",
    "doctor",
    "demo",
    "view",
]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_explains_every_flag_without_loading_torch(name):
    call = f"import sys, pipelines.{name} as script; sys.argv = ['x', '--help']"
    program = f"{call}\ntry: script.main()\nfinally: print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0
    assert ("--run" if name == "view" else "--output") in result.stdout and "python -m pipelines" in result.stdout
    assert result.stdout.rstrip().endswith("False")


def test_a_training_run_leaves_a_model_folder_and_a_record(small_run):
    for name, more in (
        ("tokenizer", ["reconstructions.png"]),
        ("prior", ["state"]),
    ):  # the state holds the weights that were not averaged
        left = sorted(path.name for path in (small_run / name).iterdir())
        assert left == sorted(["README.md", "config.json", "model.safetensors", "run.json", *more])
        record = json.loads((small_run / name / "run.json").read_text())
        assert record["finished"] and record["seed"] == 0 and "torch" in record["versions"]
        assert record["command"].startswith(f"python -m pipelines.train_{name} ")


def test_exported_codes_are_those_of_the_images_in_order(small_run, bars_file):
    from codegrid.data.images import to_float
    from codegrid.data.sources import load_images

    images = load_images("npz", bars_file, "train")
    codes = CodeDataset(small_run / "codes")
    expected = VQVAE.from_pretrained(small_run / "tokenizer").encode(to_float(images.images))
    assert torch.equal(codes.__getitems__(range(len(codes))).codes, expected)
    assert np.array_equal(codes.labels, images.labels) and codes.classes == ["0", "1"]


def test_samples_are_left_as_evaluators_read_them(small_run, tmp_path, run_script):
    parts = ("--tokenizer", small_run / "tokenizer", "--prior", small_run / "prior")
    result = run_script("sample", *parts, "--output", tmp_path, "--num-samples", 7, "--batch-size", 3, "--labels", "1")
    assert result.code == 0
    arrays = np.load(tmp_path / "samples.npz")
    assert arrays["arr_0"].shape == (7, 12, 20, 1) and arrays["arr_0"].dtype == np.uint8
    assert arrays["arr_1"].tolist() == [1] * 7
    assert Image.open(tmp_path / "samples.png").width > 500


def test_the_pipeline_draws_the_samples_that_the_script_draws(small_run, tmp_path, run_script):
    parts = ("--tokenizer", small_run / "tokenizer", "--prior", small_run / "prior")
    run_script("sample", *parts, "--output", tmp_path, "--num-samples", 4, "--seed", 3)
    samples = TwoStagePipeline.from_pretrained(small_run).sample(num_samples=4, labels=[0, 1, 0, 1], seed=3)
    images = np.load(tmp_path / "samples.npz")["arr_0"]
    assert np.array_equal(to_uint8(samples.images).permute(0, 2, 3, 1).numpy(), images)


def test_decoded_codes_are_the_reconstructions(small_run, bars_file, tmp_path, run_script):
    from codegrid.data.images import to_float
    from codegrid.data.sources import load_images

    flags = ("--tokenizer", small_run / "tokenizer", "--codes", small_run / "codes_test", "--output", tmp_path)
    assert run_script("decode_codes", *flags, "--batch-size", 4).code == 0
    originals = load_images("npz", bars_file, "test")
    expected = TwoStagePipeline.from_pretrained(small_run).reconstruct(to_float(originals.images))
    difference = np.load(tmp_path / "images.npz")["arr_0"].astype(int) - to_uint8(expected).permute(0, 2, 3, 1).numpy()
    assert abs(difference).max() <= 1


def test_plain_codes_can_be_exported_and_decoded(small_run, bars_file, tmp_path, run_script):
    data = ("--dataset", "npz", "--data-root", bars_file)
    tokenizer = ("--tokenizer", small_run / "tokenizer")
    assert run_script("export_codes", *data, *tokenizer, "--format", "npz", "--output", tmp_path / "a").code == 0
    codes = np.load(tmp_path / "a" / "codes.npz")
    assert codes["codes"].shape == (54, 3, 5) and codes["labels"].shape == (54,)
    result = run_script("decode_codes", *tokenizer, "--codes", tmp_path / "a" / "codes.npz", "--output", tmp_path / "b")
    assert result.code == 0
    assert np.load(tmp_path / "b" / "images.npz")["arr_0"].shape == (54, 12, 20, 1)


def test_evaluate_leaves_its_figures(small_run, bars_file, tmp_path, run_script):
    data = ("--dataset", "npz", "--data-root", bars_file)
    parts = ("--tokenizer", small_run / "tokenizer", "--prior", small_run / "prior")
    assert run_script("evaluate", *data, *parts, "--output", tmp_path).code == 0
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 < figures["reconstruction_error"] < 2 and figures["psnr"] > 0
    assert 1 <= figures["perplexity"] <= 16 and 0 < figures["codebook_usage"] <= 1
    assert figures["unused_entries"] == len(figures["never_used"]) == round(16 * (1 - figures["codebook_usage"]))
    assert Image.open(tmp_path / "usage.png").width > 500
    assert 0 < figures["bits_per_code"] < 6 and figures["images"] == 6


def test_an_unconditional_prior_ignores_the_labels(small_run, tmp_path, run_script):
    prior = ("--codes", small_run / "codes", "--output", tmp_path / "prior", "--unconditional", *TINY_PRIOR)
    assert run_script("train_prior", *prior).code == 0
    parts = ("--tokenizer", small_run / "tokenizer", "--prior", tmp_path / "prior")
    assert run_script("sample", *parts, "--output", tmp_path / "s", "--num-samples", 2).code == 0
    assert np.load(tmp_path / "s" / "samples.npz").files == ["arr_0"]


def test_the_same_command_again_says_that_it_is_finished(small_run, bars_file, run_script):
    data = ("--dataset", "npz", "--data-root", bars_file)
    before = (small_run / "tokenizer" / "model.safetensors").stat().st_mtime_ns
    result = run_script("train_tokenizer", *data, "--output", small_run / "tokenizer", *TINY_TOKENIZER)
    assert result.code == 0 and "finished" in result.out
    assert (small_run / "tokenizer" / "model.safetensors").stat().st_mtime_ns == before
    codes = ("--tokenizer", small_run / "tokenizer", "--output", small_run / "codes")
    assert run_script("export_codes", *data, *codes).code == 0


def test_several_labels_ask_for_one_sample_each(small_run, tmp_path, run_script):
    parts = ("--tokenizer", small_run / "tokenizer", "--prior", small_run / "prior")
    assert run_script("sample", *parts, "--output", tmp_path, "--labels", 1, 0, 1).code == 0
    assert np.load(tmp_path / "samples.npz")["arr_1"].tolist() == [1, 0, 1]


def test_class_names_are_labels_too(small_run):
    pipeline = TwoStagePipeline.from_pretrained(small_run)
    for labels in (["1", "0"], [1, 0], torch.tensor([1, 0])):
        assert pipeline.sample(2, labels=labels).labels.tolist() == [1, 0]
    assert pipeline.sample(3).labels.tolist() == [0, 1, 0]


def test_numbers_are_never_taken_for_names(small_run):
    pipeline = TwoStagePipeline.from_pretrained(small_run)
    pipeline.prior.provenance["classes"] = ["1", "0"]
    assert pipeline.sample(2, labels=[1, 0]).labels.tolist() == [1, 0]
    assert pipeline.sample(2, labels=["1", "0"]).labels.tolist() == [0, 1]


def test_an_image_folder_of_odd_sizes_goes_through_both_stages(tmp_path, run_script):
    from test_images import write_folder_of_bars

    write_folder_of_bars(tmp_path / "pictures", sizes=((12, 20), (33, 17)), count=40)
    data = ("--dataset", "imagefolder", "--data-root", tmp_path / "pictures")
    tokenizer = ("--image-size", 13, 22, "--downsampling", 2, *TINY_TOKENIZER)
    assert run_script("train_tokenizer", *data, "--output", tmp_path / "tokenizer", *tokenizer).code == 0
    codes = ("--tokenizer", tmp_path / "tokenizer", "--output", tmp_path / "codes")
    assert run_script("export_codes", *data, *codes).code == 0
    assert CodeDataset(tmp_path / "codes").grid_shape == (7, 11)
    assert (
        run_script("train_prior", "--codes", tmp_path / "codes", "--output", tmp_path / "prior", *TINY_PRIOR).code == 0
    )
    images = TwoStagePipeline.from_pretrained(tmp_path).sample(3, labels=["lying"]).images
    assert images.shape == (3, 3, 13, 22)


def test_a_full_disk_is_one_line(small_run, tmp_path, run_script, monkeypatch):
    def fill(*args, **options):
        raise OSError(28, "No space left on device", str(tmp_path / "samples.npz"))

    monkeypatch.setattr("codegrid.data.npz.open_array", fill)
    parts = ("--tokenizer", small_run / "tokenizer", "--prior", small_run / "prior")
    result = run_script("sample", *parts, "--output", tmp_path / "s", "--num-samples", 2)
    assert result.code == 2 and "no room is left on the disk" in result.err.strip().splitlines()[-1]
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["run.json"]
