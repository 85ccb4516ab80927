"""The bound on bits per dimension, against what can be summed up completely."""

import math

import pytest
import torch

from codegrid.data.images import ImageDataset, to_float
from codegrid.pipelines.evaluation.likelihood_bound import bits_per_dim, fit_scales, image_nats
from codegrid.stage1_vqvae import VQVAE
from codegrid.stage2_prior import GatedPixelCNN
from codegrid.stage2_prior.likelihood import nats_of

K, SCALE = 3, 30.0


@pytest.fixture(scope="module")
def toy():
    """A tokenizer and a prior of 1×2 pixels, all of their images, and every grid of codes: 65,536 and 9."""
    torch.manual_seed(0)
    tokenizer = VQVAE(
        1, (1, 2), hidden_channels=4, residual_channels=2, downsampling=1, num_embeddings=K, embedding_dim=2
    ).eval()
    prior = GatedPixelCNN(num_embeddings=K, channels=4, num_layers=2).eval()
    values = torch.arange(256, dtype=torch.uint8)
    images = torch.cartesian_prod(values, values).view(-1, 1, 1, 2)
    grids = torch.cartesian_prod(torch.arange(K), torch.arange(K)).view(-1, 1, 2)
    with torch.no_grad():
        encoded = tokenizer.encode(to_float(images))
        log_prior = -nats_of(prior(grids, None), grids).double().flatten(1).sum(1)
        outputs = tokenizer.decode(grids)
    return images, grids, encoded, log_prior, outputs


def exact_log_likelihood(toy):
    """log Σ_z p(z) p(x | z) of every image."""
    images, grids, _, log_prior, outputs = toy
    scales = torch.tensor([SCALE])
    terms = [
        log_prior[i] - image_nats(images, outputs[i : i + 1].expand(len(images), -1, -1, -1), scales)
        for i in range(len(grids))
    ]
    return torch.stack(terms).logsumexp(0)


def test_the_probabilities_of_all_images_sum_to_one(toy):
    assert exact_log_likelihood(toy).exp().sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("scale", [0.01, 0.7, 4.0, 900.0])
@pytest.mark.parametrize("mean", [-1.3, -1.0, 0.1234, 1.0, 2.0])
def test_the_probabilities_of_the_256_values_sum_to_one_wherever_the_mean_lies(mean, scale):
    values = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)
    nats = image_nats(values, torch.full((256, 1, 1, 1), mean), torch.tensor([scale]))
    assert torch.isfinite(nats).all() and (nats >= 0).all()
    assert (-nats).exp().sum() == pytest.approx(1, abs=1e-9)


def test_the_bound_is_never_better_than_the_exact_likelihood(toy):
    images, grids, encoded, log_prior, outputs = toy
    chosen = (encoded.flatten(1) * torch.tensor([K, 1])).sum(1)  # the number of each image's own grid
    assert torch.equal(grids[chosen], encoded) and len(chosen.unique()) > 1
    bound = log_prior[chosen] - image_nats(images, outputs[chosen], torch.tensor([SCALE]))
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
    best = image_nats(images, outputs, scales).sum()
    for factor in (0.98, 1.02):
        for channel in range(2):
            other = scales.clone()
            other[channel] *= factor
            assert image_nats(images, outputs, other).sum() > best


def test_perfect_reconstructions_have_a_finite_scale():
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    scales = fit_scales([(images, to_float(images))])
    assert 0 < scales < 0.1
    assert image_nats(images, to_float(images), scales).sum() < 0.1


def test_the_bound_of_evaluate_is_that_of_its_images_one_by_one(small_run, bars_file, tmp_path, run_script):
    import json

    from codegrid.data.sources import load_images

    data = ("--dataset", "npz", "--data-root", bars_file)
    parts = ("--tokenizer", small_run / "tokenizer", "--prior", small_run / "prior")
    assert run_script("evaluate", *data, *parts, "--output", tmp_path, "--batch-size", 4).code == 0
    figures = json.loads((tmp_path / "metrics.json").read_text())
    conditions = figures["conditions"]["bound_bits_per_dim"]
    assert conditions["given_labels"] and conditions["decoder"]["fitted_to"]["split"] == "train"
    tokenizer, prior = (
        VQVAE.from_pretrained(small_run / "tokenizer"),
        GatedPixelCNN.from_pretrained(small_run / "prior"),
    )

    def reconstruct(images: ImageDataset):
        codes = tokenizer.encode(to_float(images.images))
        return codes, tokenizer.decode(codes)

    train, test = (load_images("npz", bars_file, split) for split in ("train", "test"))
    scales = fit_scales([(train.images, reconstruct(train)[1])])
    assert conditions["decoder"]["scales_in_grey_levels"] == pytest.approx(scales.tolist(), rel=1e-4)
    codes, outputs = reconstruct(test)
    with torch.no_grad():
        nats = nats_of(prior(codes, test.labels), codes).double().flatten(1).sum(1)
    nats += image_nats(test.images, outputs, scales)
    assert figures["bound_bits_per_dim"] == pytest.approx(float(nats.mean()) / (12 * 20) / math.log(2), rel=1e-5)
    assert bits_per_dim(float(nats.sum()), 6, (1, 12, 20)) == pytest.approx(figures["bound_bits_per_dim"], rel=1e-5)
