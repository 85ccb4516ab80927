"""The bound on bits per dimension, against what can be summed up completely."""

import json
import math

import pytest
import torch

import codegrid
from codegrid.codes import Condition, Signal
from codegrid.data.images import to_float
from codegrid.data.sources import load_images
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation.likelihood_bound import fit_scales, image_nll
from codegrid.pipelines.evaluation.run import evaluate
from codegrid.stage1_vqvae.tokenizer import VQVAE
from codegrid.stage2_prior import GatedPixelCNN

K, SCALE = 3, 30.0


@pytest.fixture(scope="module")
def toy():
    """A tokenizer and a prior of 1×2 pixels, all of their images, and every grid of codes: 65,536 and 9."""
    torch.manual_seed(0)
    tokenizer = VQVAE(
        Signal("image", 1, (1, 2)), hidden_channels=4, residual_channels=2, downsampling=1, num_embeddings=K,
        embedding_dim=2,
    ).eval()  # fmt: skip
    prior = GatedPixelCNN(tokenizer.layout, channels=4, num_layers=2).eval()
    values = torch.arange(256, dtype=torch.uint8)
    images = torch.cartesian_prod(values, values).view(-1, 1, 1, 2)
    grids = torch.cartesian_prod(torch.arange(K), torch.arange(K)).view(-1, 1, 2)
    (encoded,) = tokenizer.encode(to_float(images))
    (nats,) = prior.nll((grids,))
    return images, grids, encoded, -nats.double().flatten(1).sum(1), tokenizer.decode((grids,))


def exact_log_likelihood(toy):
    """log Σ_z p(z) p(x | z) of every image."""
    images, grids, _, log_prior, outputs = toy
    scales = torch.tensor([SCALE])
    terms = [
        log_prior[i] - image_nll(images, outputs[i : i + 1].expand(len(images), -1, -1, -1), scales)
        for i in range(len(grids))
    ]
    return torch.stack(terms).logsumexp(0)


def test_the_probabilities_of_all_images_sum_to_one(toy):
    assert exact_log_likelihood(toy).exp().sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("scale", [0.01, 0.7, 4.0, 900.0])
@pytest.mark.parametrize("mean", [-1.3, -1.0, 0.1234, 1.0, 2.0])
def test_the_probabilities_of_the_256_values_sum_to_one_wherever_the_mean_lies(mean, scale):
    values = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)
    nats = image_nll(values, torch.full((256, 1, 1, 1), mean), torch.tensor([scale]))
    assert torch.isfinite(nats).all() and (nats >= 0).all()
    assert (-nats).exp().sum() == pytest.approx(1, abs=1e-9)


def test_the_bound_is_never_better_than_the_exact_likelihood(toy):
    images, grids, encoded, log_prior, outputs = toy
    chosen = (encoded.flatten(1) * torch.tensor([K, 1])).sum(1)  # the number of each image's own grid
    assert torch.equal(grids[chosen], encoded) and len(chosen.unique()) > 1
    bound = log_prior[chosen] - image_nll(images, outputs[chosen], torch.tensor([SCALE]))
    exact = exact_log_likelihood(toy)
    assert (bound <= exact + 1e-9).all() and (bound < exact - 0.01).any()


def test_the_scale_is_the_likeliest_one():
    torch.manual_seed(0)
    outputs = torch.rand(50, 2, 20, 20) * 2 - 1
    uniform = torch.rand(50, 2, 20, 20).double()
    true = torch.tensor([3.0, 11.0]).view(2, 1, 1)
    drawn = (outputs.double() + 1) * 127.5 + true * (uniform.log() - (1 - uniform).log())
    images = drawn.round().clamp(0, 255).to(torch.uint8)
    scales = fit_scales((images[i : i + 8], outputs[i : i + 8]) for i in range(0, 50, 8))
    assert scales.tolist() == pytest.approx([3, 11], rel=0.03)
    best = image_nll(images, outputs, scales).sum()
    for factor in (0.98, 1.02):
        for channel in range(2):
            other = scales.clone()
            other[channel] *= factor
            assert image_nll(images, outputs, other).sum() > best


def test_perfect_reconstructions_have_a_finite_scale():
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    scales = fit_scales([(images, to_float(images))])
    assert 0 < scales < 0.1
    assert image_nll(images, to_float(images), scales).sum() < 0.1


def test_the_bound_of_evaluate_is_that_of_its_images_one_by_one(small_run, bars_file, tmp_path):
    folders = {"tokenizer": str(small_run / "tokenizer"), "prior": (str(small_run / "prior"),)}
    data = {"dataset": "npz", "data_root": str(bars_file), "batch_size": 4}
    evaluate(Evaluate(**folders, **data, output=str(tmp_path / "out")))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    measured_on = metrics["measured_on"]["bound_bits_per_dim"]
    assert measured_on["given_labels"] and measured_on["decoder"]["fitted_to"]["split"] == "train"
    tokenizer, prior = codegrid.load(small_run / "tokenizer"), codegrid.load(small_run / "prior")
    train, test = (load_images("npz", bars_file, split) for split in ("train", "test"))
    scales = fit_scales([(train.images, tokenizer.reconstruct(to_float(train.images)))])
    assert measured_on["decoder"]["scales_in_grey_levels"] == pytest.approx(scales.tolist(), rel=1e-4)
    codes = tokenizer.encode(to_float(test.images))
    (nats,) = prior.nll(codes, Condition(labels=test.labels))
    nats = nats.double().flatten(1).sum(1) + image_nll(test.images, tokenizer.decode(codes), scales)
    assert metrics["bound_bits_per_dim"] == pytest.approx(float(nats.mean()) / (12 * 20) / math.log(2), rel=1e-5)
