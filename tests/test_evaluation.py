"""What `evaluate` says of reconstructions and of samples: similarity, distances of features, and verdicts."""

import json
import pickle
import sys

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import draw_bars

from codegrid.data.sources import load_images
from codegrid.errors import InputError
from codegrid.pipelines.evaluation import classifier as judge
from codegrid.pipelines.evaluation.features import check_features, make_extractor
from codegrid.pipelines.evaluation.frechet import FeatureStatistics, frechet_distance
from codegrid.pipelines.evaluation.similarity import structural_similarity

CPU = torch.device("cpu")


def statistics_of(features, batch_size=100):
    statistics = FeatureStatistics()
    for piece in torch.as_tensor(features).split(batch_size):
        statistics.add(piece)
    return statistics


def draw_features(count, dimensions, seed):
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(dimensions, dimensions))
    return random.normal(size=(count, dimensions)) @ mixing + random.normal(size=dimensions)


def test_the_distance_is_that_of_scipys_matrix_root():
    a, b = draw_features(500, 20, 0), draw_features(300, 20, 1)
    covariances = [np.cov(features, rowvar=False) for features in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(statistics_of(a), statistics_of(b)) == pytest.approx(expected, abs=1e-3, rel=1e-6)


def test_the_distance_of_known_gaussians():
    # mean 3 apart, variances 4 and 1 in one dimension: 9 + 4 + 1 - 2 · 2
    a = torch.tensor([[-2.0], [2.0]]) * np.sqrt(0.5)
    b = torch.tensor([[-1.0], [1.0]]) * np.sqrt(0.5) + 3
    assert frechet_distance(statistics_of(a), statistics_of(b)) == pytest.approx(10)


@pytest.mark.parametrize("batch_size", [1, 7, 300])
def test_the_statistics_do_not_depend_on_the_batch_size(batch_size):
    features = draw_features(300, 5, 0) + 1e6  # far from zero, where plain sums would lose the digits
    statistics = statistics_of(features, batch_size)
    assert statistics.mean == pytest.approx(features.mean(0), rel=1e-12)
    assert statistics.covariance == pytest.approx(np.cov(features, rowvar=False), rel=1e-6)


def test_equal_sets_are_at_no_distance_also_without_full_rank():
    few = draw_features(10, 20, 0)
    assert frechet_distance(statistics_of(few), statistics_of(few)) == pytest.approx(0, abs=1e-4)
    assert statistics_of(few).rank_deficient and not statistics_of(draw_features(21, 20, 0)).rank_deficient


def test_features_that_are_no_numbers_are_refused():
    with pytest.raises(InputError, match="not finite"):
        statistics_of([[float("nan")]])


def test_a_distance_of_single_images_is_refused():
    with pytest.raises(InputError, match="at least two images"):
        frechet_distance(statistics_of([[1.0]]), statistics_of([[1.0]]))


def test_similarity_is_one_for_equal_images_and_less_for_others():
    images = torch.rand(3, 3, 12, 20) * 2 - 1
    assert structural_similarity(images, images).tolist() == pytest.approx([1] * 3, abs=1e-6)
    noisy = images.clone()
    noisy[1] += 0.3 * torch.randn_like(noisy[1])
    similarity = structural_similarity(images, noisy.clamp(-1, 1))
    assert similarity[[0, 2]].tolist() == pytest.approx([1, 1], abs=1e-6) and similarity[1] < 0.99


def test_similarity_is_left_out_where_the_window_is_larger_than_the_images():
    assert structural_similarity(torch.zeros(2, 1, 10, 30), torch.zeros(2, 1, 10, 30)) is None


@pytest.fixture
def short_training(monkeypatch):
    monkeypatch.setattr(judge, "STEPS", 20)
    monkeypatch.setattr(judge, "BATCH_SIZE", 32)


def evaluate(run_script, small_run, bars_file, output, *flags):
    data = ("--dataset", "npz", "--data-root", bars_file)
    parts = ("--tokenizer", small_run / "tokenizer", "--prior", small_run / "prior")
    result = run_script("evaluate", *data, *parts, "--output", output, *flags)
    figures = json.loads((output / "metrics.json").read_text()) if result.code == 0 else None
    return result, figures


def test_every_figure_says_under_which_conditions_it_was_had(
    small_run, bars_file, tmp_path, run_script, short_training
):
    flags = ("--features", "classifier", "--num-samples", 10, "--temperature", 0.9, "--top-k", 8, "--seed", 5)
    result, figures = evaluate(run_script, small_run, bars_file, tmp_path, *flags)
    assert result.code == 0
    names = {
        "reconstruction_error", "psnr", "ssim", "perplexity", "codebook_usage", "unused_entries", "bits_per_code",
        "bound_bits_per_dim", "rfid", "gfid", "class_agreement",
    }  # fmt: skip
    assert set(figures["conditions"]) == names <= set(figures)
    identity = load_images("npz", bars_file, "test").identity()
    reference = {"dataset": "npz", "split": "test", "images": 6, "identity": identity}
    assert all(conditions["reference"] == reference for conditions in figures["conditions"].values())
    gfid, rfid = figures["conditions"]["gfid"], figures["conditions"]["rfid"]
    assert gfid["samples"]["images"] == 10 and gfid["images_compared"] == [10, 6] and rfid["images_compared"] == [6, 6]
    wanted = {"temperature": 0.9, "top_k": 8, "top_p": 1.0, "guidance_scale": 1.0, "seed": 5}
    assert wanted.items() <= gfid["samples"].items() and "samples" not in rfid
    assert gfid["extractor"]["name"] == "classifier" and gfid["extractor"] == rfid["extractor"]
    agreement = figures["conditions"]["class_agreement"]
    assert agreement["samples"] == gfid["samples"] and 0 <= agreement["accuracy_on_reference"] <= 1
    assert gfid["rank_deficient"] and rfid["rank_deficient"] and "rank deficient" in result.out
    assert -1 <= figures["ssim"] <= 1 and figures["conditions"]["ssim"]["data_range"] == 2
    assert figures["rfid"] >= 0 and figures["gfid"] > 0 and 0 <= figures["class_agreement"] <= 1


def test_the_figures_do_not_depend_on_the_batch_size(small_run, bars_file, tmp_path, run_script, short_training):
    flags = ("--features", "classifier", "--num-samples", 9)
    results = [
        evaluate(run_script, small_run, bars_file, tmp_path / str(size), *flags, "--batch-size", size)[1]
        for size in (4, 100)
    ]
    for name in results[0]["conditions"]:
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-3, abs=1e-3), name


def test_without_features_nothing_is_drawn_or_compared(small_run, bars_file, tmp_path, run_script):
    _, figures = evaluate(run_script, small_run, bars_file, tmp_path)
    assert not {"rfid", "gfid", "class_agreement"} & set(figures) and "bound_bits_per_dim" in figures


def test_the_bound_is_left_out_where_its_scale_would_be_fitted_to_the_evaluated_images(
    small_run, bars_file, tmp_path, run_script
):
    result, figures = evaluate(run_script, small_run, bars_file, tmp_path, "--split", "train")
    assert "bound_bits_per_dim" not in figures and "no bound_bits_per_dim" in result.out and "ssim" in figures


def test_a_classifier_learns_the_classes_and_is_the_same_each_time(monkeypatch, bars_file):
    monkeypatch.setattr(judge, "STEPS", 60)
    monkeypatch.setattr(judge, "BATCH_SIZE", 32)
    train = load_images("npz", bars_file, "train")
    torch.manual_seed(7)
    one = judge.train_classifier(train, 0, CPU)
    torch.manual_seed(8)
    other = judge.train_classifier(train, 0, CPU)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    images, labels = draw_bars(seed=1)
    with torch.no_grad():
        named = one.name_classes(one(torch.from_numpy(images).permute(0, 3, 1, 2)))
    assert (named.numpy() == labels).mean() > 0.9


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (31, 100)])
def test_a_classifier_takes_images_of_any_size(size):
    network = judge.Classifier(3, size, 4)
    images = torch.zeros(2, 3, *size, dtype=torch.uint8)
    assert network(images).shape == (2, judge.FEATURES) and network.name_classes(network(images)).shape == (2,)


MODULE = """
import torch

class Means(torch.nn.Module):
    def forward(self, images):
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        return images.float().mean((2, 3))

def means(): return Means()
def wrong(): return "no network"
def flat(): return torch.nn.Flatten(0)
number = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_features.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_features", None)


def test_a_network_of_ones_own_takes_colours(small_run, bars_file, tmp_path, run_script, own_module):
    flags = ("--features", "my_features:means", "--num-samples", 8)
    _, figures = evaluate(run_script, small_run, bars_file, tmp_path / "out", *flags)
    assert figures["conditions"]["gfid"]["extractor"]["name"] == "my_features:means"
    assert figures["conditions"]["gfid"]["feature_dimensions"] == 3
    assert "class_agreement" not in figures  # nothing there names classes


@pytest.mark.parametrize(
    "features,reason",
    [
        ("weights.pt", "files of weights are not loaded"), ("vgg", "choose none, classifier"),
        ("nowhere_to_be_found:f", "cannot be imported"), ("my_features:absent", "cannot be imported"),
        ("my_features:number", "is no function"), ("my_features:wrong", "must return a torch.nn.Module"),
        ("my_features:flat", "one row of features"),
    ],
)  # fmt: skip
def test_extractors_that_are_none_are_refused(features, reason, small_run, bars_file, tmp_path, run_script, own_module):
    result, _ = evaluate(run_script, small_run, bars_file, tmp_path / "out", "--features", features)
    assert result.code == 2 and reason in result.err.strip().splitlines()[-1]


def test_inception_without_its_package_says_what_to_install(bars_file, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install -e"):
        check_features("inception", load_images("npz", bars_file, "test"), "npz")


def test_weights_of_inception_that_cannot_be_downloaded_are_one_line(bars_file, monkeypatch):
    def fail(**options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", fail)
    with pytest.raises(InputError, match="no route to host"):
        make_extractor("inception", None, 0, CPU)


def test_weights_of_inception_are_not_unpickled(tmp_path, monkeypatch):
    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"a": print}))
    torch.save({"a": print}, tmp_path / "zipped.pth")

    def load(**options):
        for name in ("weights.pth", "zipped.pth"):
            with pytest.raises(pickle.UnpicklingError):
                torch.load(tmp_path / name, weights_only=False)
        return torch.nn.Flatten()

    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", load)
    assert make_extractor("inception", None, 0, CPU).in_channels == 3
    assert torch.load(tmp_path / "zipped.pth", weights_only=False) == {"a": print}


def test_a_classifier_needs_labels(tmp_path, small_run, run_script):
    np.savez(tmp_path / "plain.npz", draw_bars()[0])
    flags = ("--dataset", "npz", "--data-root", tmp_path / "plain.npz", "--tokenizer", small_run / "tokenizer")
    result = run_script("evaluate", *flags, "--features", "classifier", "--output", tmp_path / "out")
    assert result.code == 2 and "needs labels of two classes" in result.err


@pytest.mark.parametrize(
    "flags,reason",
    [
        ("--num-samples 4", "needs --features"), ("--num-samples 1 --features classifier", "at least 2"),
        ("--num-samples -1", "--num-samples -1"), ("--num-samples 4 --features classifier --top-p 0", "--top-p 0"),
    ],
)  # fmt: skip
def test_samples_that_cannot_be_judged_are_refused(flags, reason, small_run, bars_file, tmp_path, run_script):
    result, _ = evaluate(run_script, small_run, bars_file, tmp_path / "out", *flags.split())
    assert result.code == 2 and reason in result.err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_samples_need_a_prior(small_run, bars_file, tmp_path, run_script):
    data = ("--dataset", "npz", "--data-root", bars_file, "--tokenizer", small_run / "tokenizer")
    flags = ("--num-samples", 4, "--features", "classifier", "--output", tmp_path / "out")
    result = run_script("evaluate", *data, *flags)
    assert result.code == 2 and "needs a --prior" in result.err
