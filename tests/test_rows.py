"""Sampling row by row, as CUDA graphs have it, and what is kept for the next batch. Where there is a GPU, there too."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from test_sampling import CONTROLS, LABELS, build, first_codes, random_codes, same

from codegrid.codes import Condition, Grid, Known
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.sampling_config import SamplingConfig
from codegrid.stage2_prior import GatedPixelCNN, sample
from codegrid.stage2_prior.pixelcnn import cache, rows
from codegrid.stage2_prior.pixelcnn.rows import sample_by_rows
from codegrid.stage2_prior.sampling.backends import choose_backend

each_device = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)


def by_rows(prior, count, labels=None, seed=0, known=None, **controls):
    """As `sample` draws them; on a CPU, where no backend does so, each row is a plain call of what a graph records."""
    given = prior.conditions.resolve(labels, count).to(prior.device)
    noise = Noise(seed, count=count, device=prior.device).of("grid", prior.grids[0])
    *_, last = sample_by_rows(prior, given, noise, SamplingConfig(**controls), known)
    return [grid.cpu() for grid in last.codes]


def by_steps(prior, count, *arguments, **controls):
    return [grid.cpu() for grid in sample(prior, count, *arguments, backend="torch", **controls)]


@each_device
@pytest.mark.parametrize(
    "sizes,shape,num_known,controls",
    [
        *(((8,), (4, 3), 5, controls) for controls in CONTROLS.values()),
        *(((8, 5), (2, 4), 1, controls) for controls in CONTROLS.values()),
        *(((4, 8, 5), shape, known, {}) for shape, known in (((1, 1), 0), ((1, 3), 2), ((3, 1), 3), ((2, 2), 11))),
    ],
)
def test_rows_of_codes_are_those_of_the_steps(device, sizes, shape, num_known, controls):
    prior = build(sizes, shape, 3)
    known = first_codes(random_codes(prior, 4), num_known)
    prior.to(device)
    for labels, seed in ((LABELS, 5), (LABELS[::-1], 6)):
        drawn = by_rows(prior, 4, labels, seed, known, **controls)
        assert same(drawn, by_steps(prior, 4, labels, seed, known=known, **controls))


@each_device
def test_each_sample_may_keep_as_much_of_a_row_as_it_likes(device):
    prior = build((8, 5), num_classes=3).to(device)
    whole = by_steps(prior, 3, seed=2)
    for counts in ((0, 25, 7), (40, 12, 33), (40, 40, 40), (10, 10, 10)):
        masks = [first_codes(whole, count).mask for count in counts]
        known = Known(whole, tuple(torch.stack(of_grid) for of_grid in zip(*masks, strict=True)))
        assert same(by_rows(prior, 3, seed=2, known=known), whole)


@each_device
def test_a_default_prior_draws_the_same_by_rows_and_by_steps_in_float32(device):
    torch.manual_seed(0)
    prior = GatedPixelCNN((Grid((4, 4), 512),), num_classes=10).eval().to(device)
    assert same(by_rows(prior, 8), by_steps(prior, 8))


@pytest.mark.parametrize("sizes", [(8,), (4, 8, 5)])
def test_rows_that_only_fill_up_a_product_change_no_sample(monkeypatch, sizes):
    prior = build(sizes, (3, 4), 3)
    expected = by_steps(prior, 4, LABELS, guidance_scale=1.5)
    monkeypatch.setitem(cache.SLOW_ROWS, "cpu", range(2, 13))
    assert same(by_steps(prior, 4, LABELS, guidance_scale=1.5), expected)
    assert same(by_rows(prior, 4, LABELS, guidance_scale=1.5), expected)


@each_device
def test_a_watched_sampler_shows_each_row(device):
    prior = build((8, 5), (4, 6)).to(device)
    known = Known(*first_codes(random_codes(prior), 7 * 2))
    seen = []
    for progress in sample_by_rows(prior, Condition(), Noise(0, count=2), SamplingConfig(), known, watch=True):
        seen.append(([grid.clone() for grid in progress.codes], [mark.clone() for mark in progress.drawn]))
    assert len(seen) == 3 and not seen[0][1][0][:, 2:].any()
    for row, (codes, drawn) in enumerate(seen, 1):
        assert all(mark[:, : row + 1].all() for mark in drawn)
        assert same([grid[:, : row + 1] for grid in codes], [grid[:, : row + 1] for grid in seen[-1][0]])


@each_device
def test_samplers_at_work_at_the_same_time_do_not_disturb_each_other(device):
    prior = build(num_classes=3).to(device)
    expected = by_rows(prior, 3)
    first, second = (
        sample_by_rows(
            prior, Condition(torch.arange(3)), Noise(seed, count=3).of("grid", 0), SamplingConfig(), None, True
        )
        for seed in (0, 1)
    )
    for _ in range(4):
        last, _ = next(first), next(second)
    assert same([grid.cpu() for grid in last.codes], expected)


@each_device
def test_a_sampler_is_kept_for_the_next_batch_until_training_begins(device):
    prior = build().to(device)
    drawn, kept = by_rows(prior, 3), prior.network.kept
    sampler = kept.things[3, SamplingConfig()]
    assert same(by_rows(prior, 3), drawn) and kept.things[3, SamplingConfig()] is sampler
    for count in (1, 2, 4, 5):
        by_rows(prior, count)
    assert len(kept.things) == 3  # the folded weights, and two samplers
    prior.train()
    assert not kept.things and kept.weights is None


def optimize(prior):
    optimizer = torch.optim.Adam(prior.parameters(), 0.1, fused=True)
    prior.logits(tuple(grid.to(prior.device) for grid in random_codes(prior)))[0].square().sum().backward()
    optimizer.step()


def write_past_the_counters(prior):
    for parameter in prior.parameters():
        parameter.data.mul_(1.5)


CHANGES = {
    "an optimizer": optimize,
    "an average": write_past_the_counters,
    "other weights": lambda prior: prior.load_state_dict(build(decided=9).half().state_dict()),
    "a cast and back": lambda prior: prior.half().double(),
    "another type": lambda prior: prior.float(),
    "one weight": lambda prior: torch.nn.init.constant_(prior.network.heads[0][-1].bias[2:3], 9.0),
}


@each_device
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_samples_follow_weights_that_change_in_whatever_way(device, change):
    prior = build().to(device)
    before = by_rows(prior, 9)
    change(prior)
    again = build().to(prior.device, next(prior.parameters()).dtype)
    again.load_state_dict(prior.state_dict())
    for draw in (by_rows, by_steps):
        assert same(draw(prior, 9), draw(again, 9))
    assert change is CHANGES["another type"] or change is CHANGES["a cast and back"] or not same(draw(prior, 9), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda prior: pickle.loads(pickle.dumps(prior))])
def test_copies_of_a_prior_begin_with_nothing_kept(copied):
    prior, names = build(), list(build().state_dict())
    drawn = by_rows(prior, 3)
    again = copied(prior)
    assert prior.network.kept.things and not again.network.kept.things and list(prior.state_dict()) == names
    assert same(by_rows(again, 3), drawn) and same(by_rows(prior, 3), drawn)


def test_a_sampler_made_of_weights_that_changed_meanwhile_is_not_kept():
    prior = build()
    old = sample_by_rows(prior, Condition(), Noise(0, count=3).of("grid", 0), SamplingConfig(), watch=True)
    next(old)
    write_past_the_counters(prior)
    sample(prior, 1)
    list(old)
    assert same(by_rows(prior, 3), sample(prior, 3))


@each_device
def test_a_sampler_made_in_inference_mode_is_of_use_outside(device):
    prior = build().to(device)
    with torch.inference_mode():
        drawn = by_rows(prior, 3)
    assert same(by_rows(prior, 3), drawn)


class Unrecordable(rows.RowSampler):
    def __init__(self, *arguments):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


def test_sampling_goes_on_where_no_graph_can_be_recorded_and_says_why_once(monkeypatch, capsys):
    monkeypatch.setattr(rows, "RowSampler", Unrecordable)
    prior = build()
    for _ in range(2):
        *_, last = sample_by_rows(prior, Condition(), Noise(0, count=3).of("grid", 0), SamplingConfig())
        assert same(last.codes, by_steps(prior, 3))
    assert capsys.readouterr().out.count("without a CUDA graph, which cannot be recorded: operation not permitted") == 1


def test_graphs_are_for_gpus_and_there_the_default():
    with pytest.raises(InputError, match="`backend` graph: CUDA graphs need a GPU, but the prior is on cpu"):
        sample(build(), 1, backend="graph")
    places = {name: SimpleNamespace(device=torch.device(name), has_graphs=True) for name in ("cpu", "cuda", "mps")}
    names = {
        (name, device): choose_backend(name, place) for name in ("auto", "torch") for device, place in places.items()
    }
    assert names["auto", "cuda"] == "graph" and names["torch", "cuda"] == "torch"
    assert names["auto", "cpu"] == names["auto", "mps"] == "torch"
    without = SimpleNamespace(device=torch.device("cuda"))
    assert choose_backend("auto", without) == "torch"
    with pytest.raises(InputError, match="`backend` graph: this prior has none"):
        choose_backend("graph", without)
