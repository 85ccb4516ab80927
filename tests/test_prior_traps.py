"""Ways in which priors and their samplers go wrong elsewhere: each check runs on every prior of the table.

Only what every prior has is used: its training pass, its nats and its sampler.
"""

import copy

import pytest
import torch
from small_priors import ALL, LAYOUTS, NAMES, build_prior, judge, random_codes
from small_quantizers import LargestTensor
from torch import nn

from codegrid import load
from codegrid.codes import NO_LABEL, Condition, Grid, Known, Moment
from codegrid.noise import Noise
from codegrid.sampling_config import SamplingConfig
from codegrid.stage2_prior import sample
from codegrid.stage2_prior.sampling.logits import guide

every = pytest.mark.parametrize("name", ALL)
each = pytest.mark.parametrize("name", NAMES)
LABELS = torch.tensor([0, 2, 1])


def build(name, **options):
    """A decided prior of three classes, over grids that are not square."""
    layout = LAYOUTS.get(name, (Grid((3, 4), 8), Grid((3, 4), 5)))
    return build_prior(name, num_classes=3, layout=layout, **{"decided": 10, "label_dropout": 0.5, **options})


def dropouts_of(name):
    return [option for option in build(name).config if option.endswith("dropout")]


def moment(first=0, count=3):
    return Moment(0, 10, Noise(5, first, count))


def drawing(prior, seed, **settings):
    return prior.sample(Condition(LABELS), Noise(seed, count=3), SamplingConfig(**settings), watch=True)


def same(*drawn):
    return all(torch.equal(*grids) for grids in zip(*drawn, strict=True))


@every
def test_guidance_by_one_follows_the_label_alone_and_by_zero_none(name):
    prior = build(name)
    assert same(sample(prior, 6), sample(prior, 6, guidance_scale=1.0))
    assert same(sample(prior, 6, labels="none"), sample(prior, 6, guidance_scale=0.0))


def test_guidance_by_a_half_lies_halfway():
    conditional, unconditional = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    halfway = guide(torch.cat([conditional, unconditional]), 0.5)
    torch.testing.assert_close(halfway, (conditional + unconditional) / 2)


@every
@torch.no_grad()
def test_evaluation_hides_nothing_and_agrees_bit_for_bit_in_either_mode(name):
    shown = build(name)
    hiding = build(name, **dict.fromkeys(dropouts_of(name), 0.9))
    codes, given = random_codes(shown, 3), Condition(LABELS)
    nats = [judge(prior, codes, given, Noise(0, count=3)) for prior in (shown, hiding, hiding.train())]
    assert same(nats[0], nats[1]) and same(nats[1], nats[2])


@every
@torch.no_grad()
def test_a_label_that_training_hides_is_hidden_from_every_layer(name):
    prior, hidden = build(name), 0
    codes = random_codes(prior, 1)
    for number in range(10):
        losses = [prior(codes, Condition(torch.tensor([label])), moment(number, 1)).total for label in (0, 2, NO_LABEL)]
        is_hidden = losses[0] == losses[2]
        assert (losses[0] == losses[1] == losses[2]) if is_hidden else len({float(loss) for loss in losses}) == 3
        hidden += int(is_hidden)
    assert 2 <= hidden <= 8


@every
def test_the_share_of_hidden_labels_is_the_one_that_was_asked_for(name):
    prior = build(name, label_dropout=0.2)
    rows = prior.condition_rows(Condition(torch.ones(10_000, dtype=torch.int64)), 10_000, moment(count=10_000))
    assert abs((rows != 1).double().mean() - 0.2) < 0.01 and set(rows.tolist()) == {1, 3}


@every
def test_no_call_changes_what_it_is_given(name):
    prior = build(name, label_dropout=0.5)
    codes, given = random_codes(prior, 3), Condition(LABELS.clone())
    known = Known(codes, tuple(torch.zeros_like(grid, dtype=torch.bool) for grid in codes))
    if prior.keeps != "none":
        for mask in known.mask:
            mask[:, :1] = True
    before = copy.deepcopy((codes, given, known))
    prior(codes, given, moment()).total.backward()
    judge(prior, codes, given, Noise(0, count=3))
    drawn = sample(prior, 3, labels=given.labels, known=known, guidance_scale=3.0)
    assert same(codes, before[0]) and torch.equal(given.labels, before[1].labels)
    assert same(known.codes, before[2].codes) and same(known.mask, before[2].mask)
    for kept, grid, mask in zip(codes, drawn, known.mask, strict=True):
        assert torch.equal(kept[mask], grid[mask])


@every
def test_two_draws_at_the_same_time_do_not_disturb_each_other(name):
    prior = build(name)
    alone = [[*drawing(prior, seed, guidance_scale=scale)][-1].codes for seed, scale in ((1, 2.0), (2, 1.0))]
    first, second = drawing(prior, 1, guidance_scale=2.0), drawing(prior, 2)
    last = [None, None]
    for progress in zip(first, second, strict=True):
        last = [one.codes for one in progress]
    assert same(last[0], alone[0]) and same(last[1], alone[1])


@every
def test_a_draw_that_was_given_up_leaves_nothing_behind(name):
    prior = build(name)
    fresh, codes = copy.deepcopy(prior), random_codes(prior, 3)
    next(drawing(prior, 1, guidance_scale=2.0))
    losses = [one.train()(codes, Condition(LABELS), moment()).total for one in (prior, fresh)]
    assert losses[0] == losses[1]
    gradients = [
        torch.autograd.grad(loss, list(one.parameters())) for loss, one in zip(losses, (prior, fresh), strict=True)
    ]
    assert same(*gradients) and same(sample(prior.eval(), 3), sample(fresh.eval(), 3))


@every
def test_layers_that_are_made_later_are_as_usual(name):
    def make():
        torch.manual_seed(3)
        layers = nn.Linear(4, 5), nn.Conv2d(2, 3, 3), nn.Embedding(4, 3), nn.LayerNorm(4)
        return [parameter for layer in layers for parameter in layer.parameters()]

    before = make()
    build(name)
    assert same(before, make())


@every
@torch.no_grad()
def test_without_dropout_the_loss_is_the_same_in_train_and_in_eval_mode(name):
    prior = build(name, **dict.fromkeys(dropouts_of(name), 0.0))
    codes, given = random_codes(prior, 3), Condition(LABELS)
    assert prior.train()(codes, given, moment()).total == prior.eval()(codes, given, moment()).total


@every
def test_a_single_sample_is_drawn_as_in_a_batch_by_a_saved_prior_too(name, tmp_path):
    prior = build(name).float()
    drawn = sample(prior, 3, labels=LABELS)
    prior.save_pretrained(tmp_path)
    again = load(tmp_path).eval()
    assert same([grid[1:2] for grid in drawn], sample(again, 1, labels=2, first_index=1))
    assert all(grid.shape[1:] == of.shape for grid, of in zip(drawn, prior.layout, strict=True))


@each
@torch.no_grad()
def test_without_labels_the_first_code_has_learnt_logits_of_its_own(name):
    prior = build_prior(name, shape=(3, 4))
    for backend in ("plain", "torch"):
        first = prior.steps(Condition(), 4, backend).next_logits()
        torch.testing.assert_close(first, first[:1].expand_as(first))
    (logits,) = prior.logits(random_codes(prior, 4))
    torch.testing.assert_close(logits[:, :, 0, 0], first[:, 0])
    assert len(first.unique()) > 4


@each
@torch.no_grad()
def test_the_last_step_takes_as_many_operations_in_a_large_grid_as_in_a_small_one(name):
    def of_last_step(shape):
        steps = build_prior(name, (8, 8), shape).steps(Condition(), 2, "torch")
        *earlier, before, _ = (torch.zeros(2, len(sites), dtype=torch.int64) for _, sites in steps.order)
        steps.append(torch.cat([before[:, :0], *earlier], dim=1))
        steps.next_logits()
        steps.append(before)
        with LargestTensor() as watch:
            steps.next_logits()
        return watch.count

    assert of_last_step((3, 4)) == of_last_step((9, 7))


@each
@torch.no_grad()
def test_memory_is_linear_in_the_sites(name):
    prior, count = build_prior(name, shape=(15, 16)), 4
    codes = random_codes(prior, count)
    with LargestTensor() as watch:
        prior.nll(codes)
        steps = prior.steps(Condition(), count, "torch")
        of_steps = [codes[0].flatten(1)[:, list(sites)] for _, sites in steps.order]
        for some in (of_steps[:100], of_steps[100:238]):
            steps.append(torch.cat([codes[0].flatten(1)[:, :0], *some[: len(of_steps) - 1]], dim=1))
            steps.next_logits()
    assert watch.numel < count * 240 * 240
