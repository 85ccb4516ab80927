"""Both samplers: the same codes, from (seed, index) alone, with the right probabilities."""

import itertools

import pytest
import torch

from stage2_prior import GatedPixelCNN, sample_cached, sample_plain
from stage2_prior.sampling import choose_codes, draw_uniforms

both_samplers = pytest.mark.parametrize("sampler", [sample_plain, sample_cached])


def build(num_classes=0, num_embeddings=8, **options):
    torch.manual_seed(0)
    prior = GatedPixelCNN(num_embeddings, 6, 3, num_classes, **{"first_kernel": 5, "kernel": 3, **options}).double()
    with torch.no_grad():  # as decided as a trained prior
        prior.head[-1].weight *= 20
    return prior.eval()


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("height,width", [(1, 1), (1, 6), (6, 1), (4, 7), (7, 4)])
@pytest.mark.parametrize("first_kernel,kernel", [(7, 3), (3, 5)])
def test_the_cache_gives_the_logits_of_the_parallel_pass(num_classes, height, width, first_kernel, kernel):
    prior = build(num_classes, first_kernel=first_kernel, kernel=kernel).float()
    codes = torch.randint(0, 8, (3, height, width))
    labels = torch.tensor([0, 2, 1]) if num_classes else None
    with torch.no_grad():
        expected = prior(codes, labels).flatten(2)
        cache = prior.new_cache(3, height, width, labels)
        for site in range(height * width):
            torch.testing.assert_close(cache.next_logits(), expected[:, :, site], atol=1e-4, rtol=1e-4)
            cache.append(codes.flatten(1)[:, site])


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("labels", [None, [0, 2, 1, 1]])
@pytest.mark.parametrize("height,width", [(1, 1), (4, 7), (7, 4)])
def test_both_samplers_draw_the_same_codes(temperature, labels, height, width):
    prior = build(3 if labels else 0)
    drawn = [
        sampler(prior, 4, height, width, labels=labels, seed=5, temperature=temperature)
        for sampler in (sample_plain, sample_cached)
    ]
    assert torch.equal(*drawn)
    assert drawn[0].shape == (4, height, width) and drawn[0].dtype == torch.int64


@both_samplers
def test_a_sample_does_not_depend_on_the_batch_it_is_drawn_in(sampler):
    prior = build(3)
    labels = [i % 3 for i in range(7)]
    together = sampler(prior, 7, 4, 5, labels=labels, seed=3)
    for first, size in ((0, 1), (1, 4), (5, 2)):
        alone = sampler(prior, size, 4, 5, labels=labels[first : first + size], seed=3, first_index=first)
        assert torch.equal(alone, together[first : first + size])


@both_samplers
def test_another_seed_gives_other_samples_and_the_global_generator_does_not_matter(sampler):
    prior = build()
    torch.manual_seed(1)
    first = sampler(prior, 4, 4, 5, seed=0)
    torch.manual_seed(2)
    assert torch.equal(sampler(prior, 4, 4, 5, seed=0), first)
    assert not torch.equal(sampler(prior, 4, 4, 5, seed=1), first)


@both_samplers
def test_temperature_zero_takes_the_likeliest_code_whatever_the_seed(sampler):
    prior = build()
    codes = sampler(prior, 2, 4, 5, seed=0, temperature=0.0)
    assert torch.equal(codes, sampler(prior, 2, 4, 5, seed=1, temperature=0.0))
    assert torch.equal(prior(codes).argmax(1), codes)


@both_samplers
def test_the_samples_have_the_probabilities_of_the_prior(sampler):
    prior = build(num_embeddings=3)
    grids = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    log_p = torch.log_softmax(prior(grids), 1).gather(1, grids[:, None]).sum((1, 2, 3))
    assert log_p.exp().sum().item() == pytest.approx(1)
    drawn = sampler(prior, 20_000, 2, 2, seed=0)
    numbers = (drawn.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1)
    shares = torch.bincount(numbers, minlength=81) / len(drawn)
    expected = log_p.exp()
    assert ((shares - expected).abs() < 5 * (expected * (1 - expected) / len(drawn)).sqrt() + 1e-4).all()


@both_samplers
def test_sampling_leaves_the_prior_in_the_mode_it_was_in(sampler):
    prior = build(dropout=0.5).train()
    assert torch.equal(sampler(prior, 2, 3, 3), sampler(prior, 2, 3, 3))
    assert prior.training


def test_a_code_of_probability_zero_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(4, 1)
    uniforms = torch.tensor([0.0, 0.4999999, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert choose_codes(logits, uniforms, 1.0).tolist() == [1, 1, 3, 3]


def test_uniforms_follow_from_seed_and_index():
    together = draw_uniforms(5, 3, seed=1, first_index=10)
    assert torch.equal(together[2:], draw_uniforms(3, 3, seed=1, first_index=12))
    assert len(together.flatten().unique()) == 15
