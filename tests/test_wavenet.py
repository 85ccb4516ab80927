"""The WaveNet over sequences: its receptive field, its queues, and features at every site.

Shapes: t codes of a sequence, D channels of the features.
"""

import pytest
import torch
from small_priors import build_prior, random_codes

from codegrid.codes import Condition
from codegrid.noise import Noise
from codegrid.sampling_config import SamplingConfig

D, CYCLE = 2, 3
FIELD = 2 * (2**CYCLE - 1) + 1  # codes that a logit depends on


def make(length, **options):
    return build_prior("wavenet", (8,), (length,), layers_per_cycle=CYCLE, num_cycles=2, **options)


def condition(prior, count, length, labels=None):
    features = torch.randn(count, D, length, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Condition(labels, features=(features,))


@torch.no_grad()
def test_a_code_changes_the_logits_after_it_as_far_as_the_receptive_field_and_none_at_it_or_before():
    prior = make(3 * FIELD)
    (codes,) = random_codes(prior, 1)
    changed = codes.clone()
    changed[0, 4] = (changed[0, 4] + 1) % 8
    differs = (prior.logits((changed,))[0] != prior.logits((codes,))[0]).any(1)[0]
    assert differs.nonzero().flatten().tolist() == list(range(5, 5 + FIELD))


@torch.no_grad()
def test_a_feature_changes_the_logits_of_its_own_site_and_of_later_ones():
    prior = make(20, given_features=D)
    (codes,), given = random_codes(prior, 1), condition(prior, 1, 20)
    moved = given.features[0].clone()
    moved[0, :, 7] += 1
    differs = (prior.logits((codes,), Condition(features=(moved,)))[0] != prior.logits((codes,), given)[0]).any(1)[0]
    assert differs.nonzero().flatten().tolist() == list(range(7, 20))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("length", [1, FIELD - 1, FIELD, 3 * FIELD + 1])
@torch.no_grad()
def test_the_queues_give_the_logits_of_the_parallel_pass_at_every_step_each_time(length, count, monkeypatch):
    monkeypatch.setattr("codegrid.stage2_prior.wavenet.steps.AHEAD", 5)
    prior = make(length, given_features=D, num_classes=3)
    (codes,), given = random_codes(prior, count), condition(prior, count, length, torch.arange(count))
    (expected,) = prior.logits((codes,), given)
    for _ in range(2):  # nothing is left of an earlier clip
        steps = prior.steps(given, count, "torch")
        for site in range(length):
            torch.testing.assert_close(steps.next_logits()[:, 0], expected[:, :, site], atol=1e-12, rtol=1e-12)
            steps.append(codes[:, site : site + 1])


def test_codes_are_drawn_and_not_the_likeliest_taken():
    prior = make(30)
    noise = [Noise(seed, 0, 200) for seed in (0, 0, 1)]
    first, again, other = (list(prior.sample(Condition(), each, SamplingConfig()))[-1].codes[0] for each in noise)
    assert torch.equal(first, again) and not torch.equal(first, other)
    shares = torch.bincount(first[:, 0], minlength=8) / len(first)
    p = prior.logits((first[:1],))[0][0, :, 0].softmax(0)
    assert ((shares - p).abs() < 4 * (p * (1 - p) / len(first)).sqrt() + 1e-9).all()
