"""The commands as a user runs them: what they leave, and what they say to bad input."""

import json

import numpy as np
import pytest
import torch
from conftest import LEFT, TINY_PRIOR, TINY_TOKENIZER
from PIL import Image

from codegrid import TwoStagePipeline, load
from codegrid.data.codes import CodeDataset
from codegrid.data.images import to_float, to_uint8
from codegrid.data.sources import load_images
from codegrid.pipelines.generation.sampling import sample
from codegrid.pipelines.sample import Sample


@pytest.fixture
def parts(small_run):
    """The flags that name both stages."""
    return "--tokenizer", small_run / "tokenizer", "--prior", small_run / "prior"


@pytest.fixture
def data(bars_file):
    """The flags that name the images."""
    return "--dataset", "npz", "--data-root", bars_file


@pytest.fixture
def run(run_script):
    """Run a command that must succeed, and return what it printed."""

    def call(name, *flags):
        result = run_script(name, *flags)
        assert result.code == 0, result.err
        return result.out

    return call


def test_a_training_run_leaves_a_model_folder_and_a_record(small_run):
    for name, more in (
        ("tokenizer", ["reconstructions.png"]),
        ("prior", ["state"]),
    ):  # the state holds the weights that were not averaged
        left = sorted(path.name for path in (small_run / name).iterdir())
        assert left == sorted([*LEFT, *more])
        record = json.loads((small_run / name / "run.json").read_text())
        assert record["finished"] and record["seed"] == 0 and "torch" in record["versions"]
        assert record["command"] == f"train-{name}"
        assert record["command_line"].startswith(f"codegrid train-{name} ")


def test_exported_codes_are_those_of_the_images_in_order(small_run, bars_file):
    images = load_images("npz", bars_file, "train")
    codes = CodeDataset(small_run / "codes")
    (expected,) = load(small_run / "tokenizer").encode(to_float(images.images))
    assert torch.equal(*codes.batch(range(len(codes))).codes, expected)
    assert np.array_equal(codes.labels, images.labels) and codes.classes == ["0", "1"]


def test_samples_are_left_as_evaluators_read_them(parts, tmp_path, run):
    run("sample", *parts, "--output", tmp_path, "--num-samples", 7, "--batch-size", 3, "--labels", "1")
    arrays = np.load(tmp_path / "samples.npz")
    assert arrays["arr_0"].shape == (7, 12, 20, 1) and arrays["arr_0"].dtype == np.uint8
    assert arrays["arr_1"].tolist() == [1] * 7
    assert Image.open(tmp_path / "samples.png").width > 500


def test_the_pipeline_draws_the_samples_that_the_command_draws(small_run, parts, tmp_path, run):
    run("sample", *parts, "--output", tmp_path, "--num-samples", 4, "--seed", 3)
    samples = TwoStagePipeline.from_pretrained(small_run).sample(num_samples=4, labels=[0, 1, 0, 1], seed=3)
    images = np.load(tmp_path / "samples.npz")["arr_0"]
    assert np.array_equal(to_uint8(samples.images).permute(0, 2, 3, 1).numpy(), images)


def test_decoded_codes_are_the_reconstructions(small_run, bars_file, tmp_path, run):
    flags = ("--tokenizer", small_run / "tokenizer", "--codes", small_run / "codes_test", "--output", tmp_path)
    run("decode_codes", *flags, "--batch-size", 4)
    originals = load_images("npz", bars_file, "test")
    expected = TwoStagePipeline.from_pretrained(small_run).reconstruct(to_float(originals.images))
    difference = np.load(tmp_path / "images.npz")["arr_0"].astype(int) - to_uint8(expected).permute(0, 2, 3, 1).numpy()
    assert abs(difference).max() <= 1


def test_plain_codes_can_be_exported_and_decoded(parts, data, tmp_path, run):
    run("export_codes", *data, *parts[:2], "--format", "npz", "--output", tmp_path / "a")
    codes = np.load(tmp_path / "a" / "codes.npz")
    assert codes["codes"].shape == (54, 3, 5) and codes["labels"].shape == (54,)
    run("decode_codes", *parts[:2], "--codes", tmp_path / "a" / "codes.npz", "--output", tmp_path / "b")
    assert np.load(tmp_path / "b" / "images.npz")["arr_0"].shape == (54, 12, 20, 1)


def test_evaluate_leaves_and_prints_its_metrics_and_does_nothing_when_it_is_finished(parts, data, tmp_path, run):
    said = run("evaluate", *data, *parts, "--output", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 < metrics["reconstruction_error"] < 2 and metrics["psnr"] > 0
    assert 1 <= metrics["perplexity"] <= 16 and 0 < metrics["codebook_usage"] <= 1
    assert Image.open(tmp_path / "usage.png").width > 500 and (tmp_path / "reconstructions.png").is_file()
    assert 0 < metrics["bits_per_code"] < 6 and metrics["images"] == 6 and "reconstruction_error" in said
    assert "nothing to do" in run("evaluate", *data, *parts, "--output", tmp_path)


def test_an_unconditional_prior_ignores_the_labels(small_run, tmp_path, run):
    run("train_prior", "--codes", small_run / "codes", "--output", tmp_path / "prior", "--unconditional", *TINY_PRIOR)
    models = ("--tokenizer", small_run / "tokenizer", "--prior", tmp_path / "prior")
    run("sample", *models, "--output", tmp_path / "s", "--num-samples", 2)
    assert np.load(tmp_path / "s" / "samples.npz").files == ["arr_0"]


def test_the_same_command_again_says_that_it_is_finished(small_run, data, run):
    before = (small_run / "tokenizer" / "model.safetensors").stat().st_mtime_ns
    assert "finished" in run("train_tokenizer", *data, "--output", small_run / "tokenizer", *TINY_TOKENIZER)
    assert (small_run / "tokenizer" / "model.safetensors").stat().st_mtime_ns == before
    codes = ("--tokenizer", small_run / "tokenizer", "--output", small_run / "codes")
    assert "finished" in run("export_codes", *data, *codes)


def test_several_labels_ask_for_one_sample_each(parts, tmp_path, run):
    run("sample", *parts, "--output", tmp_path, "--labels", 1, 0, 1)
    assert np.load(tmp_path / "samples.npz")["arr_1"].tolist() == [1, 0, 1]


def test_several_codes_a_site_go_through_both_stages(data, bars_file, tmp_path, run):
    tokenizer, prior = tmp_path / "tokenizer", tmp_path / "prior"
    residual = ("--quantizer", "residual", "--num-quantizers", 3)
    run("train_tokenizer", *data, "--output", tokenizer, *residual, *TINY_TOKENIZER)
    run("export_codes", *data, "--tokenizer", tokenizer, "--output", tmp_path / "codes")
    codes = CodeDataset(tmp_path / "codes")
    assert [(grid.shape, grid.num_embeddings) for grid in codes.layout] == [((3, 5), 16)] * 3
    assert {name: len(table) for name, table in codes.tables().items()} == {f"entries.{i}": 16 for i in range(3)}
    run("train_prior", "--codes", tmp_path / "codes", "--output", prior, *TINY_PRIOR)

    models = ("--tokenizer", tokenizer, "--prior", prior)
    run("sample", *models, "--output", tmp_path / "samples", "--num-samples", 5, "--batch-size", 2)
    run("sample", *models, "--output", tmp_path / "drawn", "--num-samples", 5, "--format", "codegrid")
    run("decode_codes", *models[:2], "--codes", tmp_path / "drawn", "--output", tmp_path / "decoded")
    images = np.load(tmp_path / "samples" / "samples.npz")["arr_0"].astype(int)
    assert abs(images - np.load(tmp_path / "decoded" / "images.npz")["arr_0"]).max() <= 1

    pipeline = load(tmp_path)
    originals = to_float(load_images("npz", bars_file, "test").images)
    completed = pipeline.complete(originals, keep=2, num_completions=2)
    assert completed.images.shape == (12, 1, 12, 20) and len(completed.codes) == 3
    for kept, grid in zip(pipeline.encode(originals), completed.codes, strict=True):
        assert torch.equal(grid[::2, :2], kept[:, :2]) and torch.equal(grid[1::2, :2], kept[:, :2])


def test_an_image_folder_of_odd_sizes_goes_through_both_stages(tmp_path, run):
    from test_images import write_folder_of_bars

    write_folder_of_bars(tmp_path / "pictures", sizes=((12, 20), (33, 17)), count=40)
    data = ("--dataset", "imagefolder", "--data-root", tmp_path / "pictures")
    tokenizer = ("--image-size", 13, 22, "--downsampling", 2, *TINY_TOKENIZER)
    run("train_tokenizer", *data, "--output", tmp_path / "tokenizer", *tokenizer)
    tokens = ("--tokenizer", tmp_path / "tokenizer")
    run("export_codes", *data, *tokens, "--output", tmp_path / "codes")
    codes = CodeDataset(tmp_path / "codes")
    assert [grid.shape for grid in codes.layout] == [(7, 11)]
    names = codes.batch(range(len(codes))).columns["files"]
    assert names[:2] == ["lying/000.png", "lying/002.png"] and len(names) == 36
    run("decode_codes", *tokens, "--codes", tmp_path / "codes", "--output", tmp_path / "decoded")
    assert json.loads((tmp_path / "decoded" / "files.json").read_text()) == names
    said = run("evaluate", *data, *tokens, "--output", tmp_path / "judged")
    assert said.startswith(f"{tmp_path / 'pictures'}, test: 4 images in 2 classes (lying 2, upright 2); train: 36")
    shown = json.loads((tmp_path / "judged" / "metrics.json").read_text())["shown_files"]
    assert len(shown) == 4 and {*shown}.isdisjoint(names)
    run("train_prior", "--codes", tmp_path / "codes", "--output", tmp_path / "prior", *TINY_PRIOR)
    images = TwoStagePipeline.from_pretrained(tmp_path).sample(3, labels=["lying"]).images
    assert images.shape == (3, 3, 13, 22)


def test_settings_from_python_do_what_flags_do(small_run, tmp_path):
    models = {"tokenizer": str(small_run / "tokenizer"), "prior": (str(small_run / "prior"),)}
    sample(Sample(**models, output=str(tmp_path / "s"), num_samples=2))
    assert json.loads((tmp_path / "s" / "run.json").read_text())["finished"]
