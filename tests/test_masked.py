"""Priors that draw many sites at once, in any order: their settings, their sampler, their network and their bound."""

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch
from small_priors import MASKED, build_prior, random_codes

from codegrid.codes import HIDDEN, Condition, Grid, Known, Moment
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.sampling_config import MaskSchedule, SamplingConfig, UnmaskOrder, sampling_configs
from codegrid.stage2_prior import masked_likelihood, sample
from codegrid.stage2_prior.likelihood import cross_entropy, measure
from codegrid.stage2_prior.masked_likelihood import random_order_nats
from codegrid.stage2_prior.sampling.masked import sample_masked
from codegrid.stage2_prior.sampling.schedules import halton_ranks, hidden_after, masked_share

# Settings.


@pytest.mark.parametrize("schedule", [None, "constant", "growing"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_scale_of_1_is_no_guidance_and_one_of_0_no_condition_at_every_step(schedule, steps):
    for scale in (0.0, 0.5, 1.0):
        config = SamplingConfig(guidance_scale=scale, guidance_schedule=schedule)
        assert {config.guidance_at(step, steps) for step in range(steps)} == {scale}
    strong = SamplingConfig(guidance_scale=3.0, guidance_schedule=schedule)
    scales = [strong.guidance_at(step, steps) for step in range(steps)]
    expected = [1 + 2 * step / (steps - 1) for step in range(steps)] if steps > 1 else [3.0]
    assert scales == (expected if schedule == "growing" else [3.0] * steps)


@pytest.mark.parametrize(
    "settings,reason",
    [
        ({"unmask_order": "raster"}, "`unmask_order` 'raster': choose one of confidence, halton, random"),
        ({"mask_schedule": 3}, "`mask_schedule` 3"),
        ({"guidance_schedule": "up"}, "`guidance_schedule` 'up': choose one of constant, growing"),
        ({"choice_temperature": -1.0}, "`choice_temperature` -1"),
        ({"num_inference_steps": 0}, "`num_inference_steps` 0"),
        ({"unmask_order": ["random"] * 3}, "`unmask_order`: 3 values for 2 priors"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, reason):
    with pytest.raises(InputError, match=reason):
        sampling_configs(2, **settings)


# How many sites are drawn at each step, and which.

SCHEDULES = get_args(MaskSchedule)
ORDERS = get_args(UnmaskOrder)
each = pytest.mark.parametrize("name", MASKED)
each_order = pytest.mark.parametrize("order", ORDERS)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_step_draws_a_site_and_the_last_one_the_rest_whatever_the_schedule(schedule):
    for sites in (1, 2, 7, 49):
        for steps in {1, 2, sites // 2, sites} & set(range(1, sites + 1)):
            left = [sites, *hidden_after(sites, steps, schedule)]
            assert len(left) == steps + 1 and left[-1] == 0
            assert all(before > after for before, after in pairwise(left))


def test_schedules_hide_the_shares_that_they_are_named_after():
    half = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    middle = {"cosine": 2**-0.5, "arccos": 2 / 3, "linear": 0.5, "square": 0.75, "cubic": 0.875, "root": 1 - 2**-0.5}
    for schedule in SCHEDULES:
        assert masked_share(schedule, half).tolist() == pytest.approx([1, middle[schedule], 0], abs=1e-12)
    assert hidden_after(64, 8, "linear") == (56, 48, 40, 32, 24, 16, 8, 0)


@pytest.mark.parametrize("shape", [(8,), (5, 4), (1, 6), (2, 3, 4)])
def test_the_halton_order_meets_every_site_once_and_spreads_evenly(shape):
    ranks = halton_ranks((Grid(shape, 2), Grid(shape, 3)))
    sites = math.prod(shape)
    assert ranks.sort().values.tolist() == list(range(2 * sites))
    assert torch.equal(ranks[:sites] + sites, ranks[sites:])  # grid after grid, coarse to fine
    for axis, side in enumerate(shape):
        order = torch.cartesian_prod(*map(torch.arange, shape)).view(sites, len(shape))[ranks[:sites].argsort(), axis]
        assert len(order[: 2 * side].unique()) >= min(side, sites) - side // 3


class TablePrior:
    """Codes of three sites with probabilities that are known: conditionals of a table (2, 2, 2), so all consistent."""

    layout, device, training = (Grid((3,), 2),), torch.device("cpu"), False
    controls, max_inference_steps = frozenset(vars(SamplingConfig())), 3
    own_settings = SamplingConfig(num_inference_steps=3, mask_schedule="linear", unmask_order="random")

    def __init__(self):
        self.joint = torch.tensor([0.3, 0.02, 0.05, 0.13, 0.05, 0.2, 0.02, 0.23], dtype=torch.float64)
        self.rows = torch.cartesian_prod(*[torch.arange(2)] * 3)  # (8, 3)

    def hidden_logits(self, codes, given=None, backend="auto"):
        alike = ((codes[0][:, None] == HIDDEN) | (codes[0][:, None] == self.rows)).all(-1) * self.joint  # (b, 8)
        ones = alike @ self.rows.double()
        return (torch.stack([alike.sum(1, keepdim=True) - ones, ones], -1).log(),)


@pytest.mark.parametrize("order", ["random", "halton"])
def test_one_site_at_a_step_draws_exactly_the_distribution_of_consistent_conditionals(order):
    prior, count = TablePrior(), 20_000
    *_, last = sample_masked(prior, Condition(), Noise(0, count=count), SamplingConfig(unmask_order=order))
    shares = torch.bincount(last.codes[0] @ torch.tensor([4, 2, 1]), minlength=8) / count
    assert (shares - prior.joint).abs().max() < 0.01
    *_, last = sample_masked(prior, Condition(), Noise(0, count=count), SamplingConfig(num_inference_steps=1))
    shares = torch.bincount(last.codes[0] @ torch.tensor([4, 2, 1]), minlength=8) / count
    ones = prior.joint @ prior.rows.double()
    independent = torch.where(prior.rows == 1, ones, 1 - ones).prod(1)
    assert (shares - independent).abs().max() < 0.01 < (prior.joint - independent).abs().max()


@pytest.mark.parametrize("masks", [8, 1])
def test_the_bound_is_the_entropy_with_one_site_at_a_step_and_above_it_with_more(masks, monkeypatch):
    monkeypatch.setattr(masked_likelihood, "MASKS", masks)
    prior, times = TablePrior(), 4000
    codes, weights = prior.rows.repeat(times, 1), prior.joint.repeat(times) / times

    def bound(steps):
        noise = Noise(0, count=len(codes))
        (nats,) = random_order_nats(prior, (codes,), Condition(), noise, steps, "linear")
        return float(nats.double().sum(1) @ weights)

    entropy, ones = float(torch.special.entr(prior.joint).sum()), prior.joint @ prior.rows.double()
    independent = float((torch.special.entr(ones) + torch.special.entr(1 - ones)).sum())
    one_by_one, in_two, at_once = bound(3), bound(2), bound(1)
    assert one_by_one == pytest.approx(entropy, abs=0.02) and at_once == pytest.approx(independent, abs=0.02)
    assert entropy + 0.05 < in_two < at_once


class FixedPrior(TablePrior):
    """The same logits (1, n, K) for each grid whatever is known."""

    def __init__(self, *logits):
        self.logits = logits
        self.layout = tuple(Grid((part.shape[1],), part.shape[2]) for part in logits)
        self.max_inference_steps = sum(part.shape[1] for part in logits)
        self.own_settings = SamplingConfig(num_inference_steps=4, mask_schedule="cosine", choice_temperature=0.0)

    def hidden_logits(self, codes, given=None, backend="auto"):
        return tuple(part.expand(len(codes[0]), -1, -1) for part in self.logits)


def drawn_by(prior, *, seed=0, count=3, known=None, **settings):
    steps = sample_masked(prior, Condition(), Noise(seed, count=count), SamplingConfig(**settings), known, watch=True)
    return [
        (tuple(grid.clone() for grid in step.codes), torch.cat([mark.flatten(1) for mark in step.drawn], 1))
        for step in steps
    ]


@each_order
@pytest.mark.parametrize("heat", [0.0, 4.5])
def test_equal_confidences_are_drawn_by_the_schedule_too(order, heat):
    prior = FixedPrior(torch.zeros(1, 7, 5), torch.zeros(1, 3, 2))
    left = [(~marks).sum(1).tolist() for _, marks in drawn_by(prior, unmask_order=order, choice_temperature=heat)]
    assert left == [[n] * 3 for n in hidden_after(10, 4, "cosine")]


def test_the_most_confident_candidates_are_drawn_first_and_a_constant_changes_nothing():
    logits = torch.randn(1, 12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = logits + 10 * torch.arange(12).view(1, 12, 1)
    prior = FixedPrior(logits)
    for settings in ({"temperature": 0.0}, {"choice_temperature": 4.5}, {"top_k": 2}):
        one, other = (drawn_by(each, **settings) for each in (prior, FixedPrior(shifted)))
        assert all(torch.equal(a[0][0], b[0][0]) and torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True))
    best = logits.log_softmax(-1).amax(-1)[0]
    first = drawn_by(prior, temperature=0.0)[0][1][0]
    assert best[first].min() > best[~first].max()
    heated = drawn_by(prior, temperature=0.0, choice_temperature=50.0)[0][1]
    assert not torch.equal(heated, first.expand(3, -1))


def test_the_order_becomes_less_random_from_step_to_step():
    sure = torch.tensor([50.0, 0.0], dtype=torch.float64).expand(1, 9, 2)
    unsure = torch.zeros(1, 3, 2, dtype=torch.float64)  # less likely by a factor of 2
    heat = {"choice_temperature": 16 / 12 * math.log(2), "mask_schedule": "linear", "num_inference_steps": 4}
    before_the_last = drawn_by(FixedPrior(torch.cat([sure, unsure], 1)), count=500, **heat)[-2][1]
    assert 2.0 < float((~before_the_last[:, 9:]).double().sum(1).mean()) < 2.9


def test_candidates_that_did_not_stay_are_drawn_again():
    prior = FixedPrior(torch.tensor([0.9, 0.1], dtype=torch.float64).log().expand(1, 8, 2))
    (codes,), _ = drawn_by(prior, count=500, num_inference_steps=8)[-1]
    assert 0 < codes.double().mean() < 0.05


def test_temperature_and_top_k_bear_on_the_candidates():
    logits = torch.randn(1, 400, 20, generator=torch.Generator().manual_seed(0))
    prior = FixedPrior(logits)

    def mean(**settings):
        (codes,), _ = drawn_by(prior, count=20, **settings)[-1]
        return float(logits.expand(20, -1, -1).gather(2, codes[..., None]).mean())

    assert mean(temperature=0.0) > mean(temperature=0.5) + 0.1 > mean() + 0.2 > mean(temperature=2.0) + 0.3
    (codes,), _ = drawn_by(prior, count=20, top_k=3)[-1]
    best = logits.topk(3).indices.expand(20, -1, -1)
    assert (codes[..., None] == best).any(-1).all() and len(codes[:, 0].unique()) == 3


# The sampler, with every prior of the table that has hidden codes to guess.

SIZES = {"one grid": ((8,), (3, 5)), "two codes a site": ((8, 5), (3, 4)), "three axes": ((6,), (2, 2, 3))}
each_size = pytest.mark.parametrize("sizes,shape", SIZES.values(), ids=SIZES)


def same(*drawn):
    return all(torch.equal(*grids) for grids in zip(*drawn, strict=True))


def masks_like(codes, count, seed=0):
    """Masks of which each sample keeps a part of its own, from nearly all to nothing."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.linspace(1, 0, count).view(-1, *[1] * (codes[0].ndim - 1))
    return tuple(torch.rand(count, *grid.shape[1:], generator=generator) < shares for grid in codes)


@each
@each_order
@each_size
def test_samples_that_know_different_parts_are_each_drawn_as_if_alone(name, order, sizes, shape):
    prior = build_prior(name, sizes, shape, num_classes=3, label_dropout=0.1)
    codes = random_codes(prior, 5)
    known = Known(codes, masks_like(codes, 5))
    settings = {"labels": [0, 1, 2, 0, 1], "unmask_order": order, "guidance_scale": 3.0, "num_inference_steps": 5}
    together = sample(prior, 5, known=known, **settings)
    assert same(together, sample(prior, 5, known=known, batch_size=2, **settings))
    for grid, old, mask in zip(together, codes, known.mask, strict=True):
        assert torch.equal(grid[mask], old[mask]) and not torch.equal(grid, old)
    alone = sample(prior, 1, known=known.rows([3]), first_index=3, **{**settings, "labels": [0]})
    assert same(alone, [grid[3:4] for grid in together])


@each
@each_order
@pytest.mark.parametrize("steps", [1, 4, 15])
def test_a_code_that_is_known_or_drawn_stays_and_none_is_hidden_at_the_end(name, order, steps):
    prior = build_prior(name, (8,), (3, 5))
    codes = random_codes(prior, 4)
    before, seen = None, 0
    config = SamplingConfig(num_inference_steps=steps, unmask_order=order)
    for progress in prior.sample(
        Condition(), Noise(0, count=4), config, Known(codes, masks_like(codes, 4)), watch=True
    ):
        (now,), (drawn,), done = progress
        if before is not None:
            assert torch.equal(now[before[1]], before[0][before[1]]) and (drawn | ~before[1]).all()
        before, seen = (now.clone(), drawn.clone()), seen + 1
    assert seen == steps and before[1].all() and ((before[0] >= 0) & (before[0] < 8)).all() and done == 1


@each
def test_two_interleaved_drawings_are_those_of_two_that_follow_each_other(name):
    prior = build_prior(name, (8,), (3, 5), num_classes=3, label_dropout=0.1)

    def start(seed, scale):
        given = Condition(torch.tensor([0, 2]))
        return prior.sample(given, Noise(seed, count=2), SamplingConfig(guidance_scale=scale), watch=True)

    def copy(step):
        return tuple(grid.clone() for grid in step.codes)

    apart = [list(map(copy, start(*how))) for how in ((0, 1.0), (1, 3.0))]
    together = [tuple(map(copy, pair)) for pair in zip(start(0, 1.0), start(1, 3.0), strict=True)]
    assert all(same(one, two[0]) and same(other, two[1]) for one, other, two in zip(*apart, together, strict=True))


@each
@pytest.mark.parametrize("schedule", ["constant", "growing"])
def test_guidance_goes_from_no_label_over_the_label_to_beyond(name, schedule):
    prior = build_prior(name, (8,), (3, 5), num_classes=3, decided=20, label_dropout=0.1)
    of_label, of_none = (sample(prior, 20, labels=[label]) for label in (1, "none"))
    by_scale = {
        scale: sample(prior, 20, labels=[1], guidance_scale=scale, guidance_schedule=schedule)
        for scale in (0.0, 1.0, 4.0)
    }
    assert same(by_scale[0.0], of_none) and same(by_scale[1.0], of_label) and not same(of_none, of_label)
    assert not same(by_scale[4.0], of_label)


@each
@torch.no_grad()
def test_every_site_depends_on_every_shown_code_and_on_every_coarser_one(name):
    coarser = {"grids": (1, 2), "given_grids": (0,), "given_layout": [Grid((2, 2), 6)]}
    prior = build_prior(name, (8, 5), (3, 4), decided=50, **coarser)
    codes, below = random_codes(prior, 1), torch.randint(0, 6, (1, 2, 2))
    hidden = tuple(torch.where(torch.rand(grid.shape) < 0.5, HIDDEN, grid) for grid in codes)
    before = prior.hidden_logits(hidden, Condition(codes=(below,)))
    assert [part.shape for part in before] == [(1, 12, 8), (1, 12, 5)]  # no column for a hidden code
    changes = [(hidden, (below + 1) % 6)]
    for number, grid in enumerate(hidden):
        changed = [each.clone() for each in hidden]
        changed[number].view(-1)[int((grid >= 0).flatten().nonzero()[0])] = HIDDEN
        changes.append((tuple(changed), below))
    for changed, coarse in changes:
        for old, new in zip(before, prior.hidden_logits(changed, Condition(codes=(coarse,))), strict=True):
            assert ((new - old).abs().amax(-1) > 1e-12).all()
    one, other = (sample(prior, 3, codes=(coarse,)) for coarse in (below, (below + 3) % 6))
    assert not same(one, other)


# Training and the bound.


def train_pass(prior, codes, seed=0):
    return prior(codes, Condition(), Moment(0, 10, Noise(seed, count=len(codes[0]))))


@each
def test_only_hidden_codes_are_learnt_and_each_sample_counts_alike(name):
    prior = build_prior(name, (8,), (3, 5)).train()
    codes, kept = random_codes(prior, 4), {}
    prior.network.heads[0].register_forward_hook(lambda module, inputs, out: kept.update(out=out) or out.retain_grad())
    loss = train_pass(prior, codes).total
    loss.backward()
    learnt = kept["out"].grad.abs().sum(-1) > 0  # (b, n)
    hidden = prior.training_masks(Noise(0, count=4), 4)
    assert torch.equal(learnt, hidden) and 0 < hidden.sum() < hidden.numel()
    assert prior.network.heads[0][-1].bias.grad[0] != 0  # code 0 is learnt, too
    nats = cross_entropy(kept["out"].detach().mT, codes[0].flatten(1))
    expected = ((nats * hidden).sum(1) / hidden.sum(1)).mean()
    assert loss.item() == pytest.approx(expected.item())
    parts = [
        prior(tuple(grid[i : i + 2] for grid in codes), Condition(), Moment(0, 10, Noise(0, i, 2))).total.item()
        for i in (0, 2)
    ]
    assert sum(parts) / 2 == pytest.approx(loss.item())


@each
@pytest.mark.parametrize("learns_shown", [False, True])
def test_two_grids_are_learnt_by_heart_and_drawn_again(name, learns_shown):
    prior = build_prior(name, (8,), (3, 5), num_classes=2, label_dropout=0.1, learns_shown=learns_shown).float().train()
    codes, given = random_codes(prior, 2), Condition(torch.tensor([0, 1]))
    optimizer = torch.optim.Adam(prior.parameters(), 0.02)
    for step in range(60):
        loss = prior(codes, given, Moment(step, 60, Noise(0, count=2, purpose=("step", step)))).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (drawn,) = sample(prior.eval(), 2, labels=[0, 1], temperature=0.0, num_inference_steps=4)
    assert (drawn == codes[0]).double().mean() > 0.9


@each
def test_as_many_samples_are_hidden_as_a_whole_as_the_schedule_says(name):
    prior = build_prior(name, (4,), (8, 8), channels=4, num_layers=1)
    hidden = prior.training_masks(Noise(0, count=5000), 5000)
    assert hidden.all(1).double().mean() == pytest.approx(0.113, abs=0.02) and hidden.any(1).all()
    assert hidden.double().mean() == pytest.approx(2 / math.pi, abs=0.02)
    assert (hidden.double().mean(0) - hidden.double().mean()).abs().max() < 0.05


@each
@torch.no_grad()
@pytest.mark.parametrize("steps", [None, 1, 15])
def test_uniform_logits_cost_log2_k_bits(name, steps):
    prior = build_prior(name, (8,), (3, 5))
    for head in prior.network.heads:
        head[-1].weight.zero_(), head[-1].bias.zero_()
    codes = random_codes(prior, 5)
    bits = measure(prior, [(tuple(grid[i : i + 2] for grid in codes), Condition()) for i in (0, 2, 4)], 3, steps)
    assert bits.per_code == pytest.approx(3) and bits.num_samples == 5


@each
@torch.no_grad()
def test_the_bound_depends_on_the_noise_the_label_and_the_steps_and_on_nothing_else(name):
    prior = build_prior(name, (8,), (3, 5), num_classes=3, decided=20, label_dropout=0.5)
    codes = random_codes(prior, 6)

    def bits(seed=0, steps=None, label=0, size=6):
        rows = [slice(first, first + size) for first in range(0, 6, size)]
        batches = [(tuple(grid[row] for grid in codes), Condition(torch.full((size,), label))) for row in rows]
        return measure(prior, batches, seed, steps).per_sample

    assert bits() == bits() == pytest.approx(bits(size=2)) == pytest.approx(bits(steps=8))
    assert len({bits(), bits(seed=1), bits(steps=1), bits(steps=15), bits(label=1)}) == 5
    with pytest.raises(InputError, match="`num_inference_steps` 16: this prior can take at most 15 steps"):
        bits(steps=16)


@each
@pytest.mark.parametrize(
    "settings,reason",
    [
        ({"backend": "native"}, "`backend` native: this prior has no native sampler"),
        ({"backend": "graph"}, "`backend` graph: this prior has none"),
        ({"num_inference_steps": 16}, "`num_inference_steps` 16: this prior can take at most 15 steps"),
        ({"codes": (torch.zeros(1, 2, 2),)}, "`codes`: this prior is not conditioned on this"),
    ],
)
def test_what_it_cannot_do_is_refused(name, settings, reason):
    with pytest.raises(InputError, match=reason):
        sample(build_prior(name, (8,), (3, 5)), 2, **settings)


@each
def test_a_grid_larger_than_the_learnt_one_is_refused(name):
    prior = build_prior(name, (8,), (3, 5))
    with pytest.raises(InputError, match="a grid of 3×6 sites, but this prior has learnt positions for 3×5 sites"):
        prior.hidden_logits((torch.zeros(1, 3, 6, dtype=torch.int64),))


@pytest.mark.slow
@each
def test_the_compiled_network_draws_the_same(name):
    prior = build_prior(name, (8,), (3, 5), num_classes=3, decided=20)
    assert same(sample(prior, 4, backend="compiled"), sample(prior, 4, backend="plain"))
