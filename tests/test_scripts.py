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

from data import CodeDataset
from data.images import to_uint8
from pipelines import TwoStagePipeline
from stage1_vqvae import VQVAE
from storage.errors import InputError

ROOT = Path(__file__).parent.parent
SCRIPTS = ["train_tokenizer", "export_codes", "train_prior", "sample", "decode_codes", "evaluate", "demo"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_explains_every_flag_without_loading_torch(name):
    call = f"import sys, pipelines.{name} as script; sys.argv = ['x', '--help']"
    program = f"{call}\ntry: script.main()\nfinally: print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0
    assert "--output" in result.stdout and "python -m pipelines" in result.stdout
    assert result.stdout.rstrip().endswith("False")


def test_a_training_run_leaves_a_model_folder_and_a_record(small_run):
    for name, more in (("tokenizer", []), ("prior", ["state"])):  # the state holds the weights that were not averaged
        left = sorted(path.name for path in (small_run / name).iterdir())
        assert left == ["config.json", "model.safetensors", "run.json", *more]
        record = json.loads((small_run / name / "run.json").read_text())
        assert record["finished"] and record["seed"] == 0 and "torch" in record["versions"]
        assert record["command"].startswith(f"python -m pipelines.train_{name} ")


def test_exported_codes_are_those_of_the_images_in_order(small_run, bars_file):
    from data.images import to_float
    from data.sources import load_images

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
    from data.images import to_float
    from data.sources import load_images

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


@pytest.fixture(scope="session")
def other_tokenizer(tmp_path_factory):
    """A tokenizer of the same shape as that of `small_run`, with other weights."""
    folder = tmp_path_factory.mktemp("other") / "tokenizer"
    torch.manual_seed(1)
    VQVAE(1, (12, 20), hidden_channels=16, num_embeddings=16, embedding_dim=8).save_pretrained(folder)
    return folder


def test_a_prior_of_another_tokenizers_codes_is_refused_in_python(small_run, other_tokenizer):
    with pytest.raises(InputError, match="another tokenizer"):
        TwoStagePipeline.from_parts(other_tokenizer, small_run / "prior")


BAD = {
    "train_tokenizer": [
        ("--dataset npz --output {new}", "--data-root"),
        ("--dataset npz --data-root {new} --output {new}/out", "no file"),
        ("--dataset imagefolder --output {new}", "--data-root"),
        ("--dataset imagefolder --data-root {new} --output {new}/out", "no folder"),
        ("--dataset imagefolder --data-root {empty} --output {new}", "no pictures"),
        ("--dataset imagefolder --data-root {broken} --output {new}", "broken.png"),
        ("--dataset mnist --data-root {bars} --output {new}", "is a file"),
        ("{data} --steps 0 --output {new}", "--steps 0"),
        ("{data} --batch-size -3 --output {new}", "--batch-size -3"),
        ("{data} --downsampling 3 --output {new}", "power of two"),
        ("{data} --downsampling 64 --output {new}", "--downsampling 64"),
        ("{data} --image-size 0 --output {new}", "image size 0"),
        ("{data} --image-size 8 8 8 --output {new}", "image size"),
        ("{data} --lr 0 --output {new}", "--lr 0"),
        ("{data} --lr nan --output {new}", "--lr nan"),
        ("{data} --decay 1.5 --output {new}", "--decay 1.5"),
        ("{data} --decay 0 --output {new}", "--decay 0"),
        ("{data} --seed 18446744073709551616 --output {new}", "--seed"),
        ("--dataset npz --data-root {black} --output {new}", "one and the same colour"),
        ("{data} --output {new}/{long}", "File name too long"),
        ("{data} --revival-threshold 1 --output {new}", "--revival-threshold 1"),
        ("{data} --kmeans-steps -1 --output {new}", "--kmeans-steps -1"),
        ("{data} --anchors closest --output {new}", "--quantizer clustered"),
        ("{data} --quantizer gradient --anchor-once --output {new}", "--anchor-once"),
        ("{data} --commitment-cost -1 --output {new}", "--commitment-cost -1"),
        ("{data} --seed -1 --output {new}", "--seed -1"),
        ("{data} --device cuda --output {new}", "--device cpu"),
        ("{data} --output {bars}", "is a file"),
        ("{data} --output {run}/prior", "run of TrainPrior"),
        ("{data} --output {empty_but_one}", "already holds other files"),
        ("{data} {tiny} --num-embeddings 32 --output {run}/tokenizer", "num_embeddings 16, not 32"),
        ("{data} {tiny} --image-size 8 --output {run}/tokenizer", "made with"),
    ],
    "export_codes": [
        ("{data} --tokenizer {new} --output {new}/out", "no folder"),
        ("{data} --tokenizer {run}/prior --output {new}", "holds a GatedPixelCNN"),
        ("{data} --tokenizer {empty} --output {new}", "incomplete"),
        ("{data} --tokenizer {run}/tokenizer --output {run}/codes --split test", "made with"),
        ("{data} --tokenizer {run}/tokenizer --output {run}/prior", "other files"),
        ("{data} --tokenizer {run}/tokenizer --output {bars}", "is a file"),
        ("{data} --tokenizer {run}/tokenizer --output {new} --batch-size 0", "--batch-size 0"),
        ("{data} --tokenizer {damaged} --output {new}", "is damaged"),
    ],
    "train_prior": [
        ("--codes {new} --output {new}/out", "no folder"),
        ("--codes {empty} --output {new}", "not a whole code dataset"),
        ("--codes {run}/codes --output {new} --dropout 1", "--dropout 1"),
        ("--codes {run}/codes --output {new} --num-layers 0", "--num-layers 0"),
        ("--codes {run}/codes --output {new} --validation-codes {new}", "no folder"),
    ],
    "sample": [
        ("{parts} --output {new} --num-samples 0", "--num-samples 0"),
        ("{parts} --output {new} --batch-size 0", "--batch-size 0"),
        ("{parts} --output {new} --labels 2", "label 2: there are classes 0 to 1"),
        ("{parts} --output {new} --labels cat", "label cat"),
        ("{parts} --output {new} --labels ²", "label ²"),
        ("{parts} --output {new} --labels 0 1 --num-samples 3", "2 labels for 3 samples"),
        ("{parts} --output {new} --temperature -1", "--temperature -1"),
        ("{parts} --output {new} --temperature nan", "--temperature nan"),
        ("{parts} --output {new} --seed -1", "--seed -1"),
        ("--tokenizer {other} --prior {run}/prior --output {new}", "another tokenizer"),
        ("--tokenizer {run}/tokenizer --prior {run}/tokenizer --output {new}", "holds a VQVAE"),
        ("--tokenizer {run}/tokenizer --prior {new} --output {new}/out", "no folder"),
    ],
    "decode_codes": [
        ("--tokenizer {other} --codes {run}/codes --output {new}", "another tokenizer"),
        ("--tokenizer {run}/tokenizer --codes {new}.npz --output {new}", "no file"),
        ("--tokenizer {run}/tokenizer --codes {too_large} --output {new}", "code 16, but"),
        ("--tokenizer {run}/tokenizer --codes {turned} --output {new}", "grids of 5×3 codes, but"),
        ("--tokenizer {run}/tokenizer --codes {named} --output {new}", "one whole number for each"),
        ("--tokenizer {run}/tokenizer --codes {bars} --output {new}", "whole numbers of shape"),
        ("--tokenizer {run}/tokenizer --codes {run}/prior --output {new}", "not a whole code dataset"),
    ],
    "evaluate": [
        ("{data} --tokenizer {other} --prior {run}/prior --output {new}", "another tokenizer"),
        ("{data} --tokenizer {run}/tokenizer --batch-size 0 --output {new}", "--batch-size 0"),
        ("--dataset imagefolder --data-root {new} --tokenizer {run}/tokenizer --output {new}/out", "no folder"),
    ],
}


@pytest.mark.parametrize("script,flags,reason", [(name, *case) for name, cases in BAD.items() for case in cases])
def test_bad_input_gets_one_line_and_exit_code_2(
    script, flags, reason, small_run, other_tokenizer, bars_file, tmp_path, run_script
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "notes.txt").write_text("mine")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "damaged").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "damaged" / name).write_bytes((small_run / "tokenizer" / name).read_bytes()[:-3] + b"\x00}\n")
    np.savez(tmp_path / "large.npz", codes=np.full((2, 3, 5), 16))
    np.savez(tmp_path / "turned.npz", codes=np.zeros((2, 5, 3), dtype=int))
    np.savez(tmp_path / "named.npz", codes=np.zeros((2, 3, 5), dtype=int), labels=["cat", "dog"])
    np.savez(tmp_path / "black.npz", np.zeros((20, 12, 20), dtype=np.uint8))
    places = {
        "new": tmp_path / "new", "empty": tmp_path / "empty", "broken": tmp_path / "broken", "bars": bars_file,
        "damaged": tmp_path / "damaged", "run": small_run, "other": other_tokenizer, "empty_but_one": tmp_path / "one",
        "black": tmp_path / "black.npz", "long": "x" * 300,
        "turned": tmp_path / "turned.npz", "named": tmp_path / "named.npz",
        "too_large": tmp_path / "large.npz", "data": f"--dataset npz --data-root {bars_file}",
        "parts": f"--tokenizer {small_run}/tokenizer --prior {small_run}/prior", "tiny": " ".join(TINY_TOKENIZER),
    }  # fmt: skip
    before = {path: path.read_bytes() for path in small_run.rglob("*") if path.is_file()}
    short = ("--steps", "2") if script.startswith("train") and "--steps" not in flags else ()
    result = run_script(script, *short, *flags.format(**places).split())
    assert result.code == 2
    last = result.err.strip().splitlines()[-1]
    assert last.startswith("error: ") and reason in last and "Traceback" not in result.err
    assert {path: path.read_bytes() for path in small_run.rglob("*") if path.is_file()} == before


def test_a_full_disk_is_one_line(small_run, tmp_path, run_script, monkeypatch):
    def fill(*args, **options):
        raise OSError(28, "No space left on device", str(tmp_path / "samples.npz"))

    monkeypatch.setattr("pipelines.image_files.open_array", fill)
    parts = ("--tokenizer", small_run / "tokenizer", "--prior", small_run / "prior")
    result = run_script("sample", *parts, "--output", tmp_path / "s", "--num-samples", 2)
    assert result.code == 2 and "no room is left on the disk" in result.err.strip().splitlines()[-1]
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["run.json"]
