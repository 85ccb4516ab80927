"""Sequential sampling: the same codes from every backend, from (seed, index) alone, with the right probabilities."""

import itertools
import math
import shutil

import numpy as np
import pytest
import torch

from codegrid.codes import NO_LABEL, Condition, Grid, Known
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.sampling_config import SamplingConfig
from codegrid.stage2_prior import Conditions, GatedPixelCNN, draw, sample
from codegrid.stage2_prior.sampling.backends import BACKENDS, choose_backend
from codegrid.stage2_prior.sampling.logits import sample_from_logits, top_k_top_p
from codegrid.stage2_prior.sampling.sequential import PlainSteps, sample_sequential

SIZES = {"one": (8,), "two": (8, 5), "three": (4, 8, 5)}  # num_embeddings of one, two and three codes a site
each_size = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
both_backends = pytest.mark.parametrize("backend", ["plain", "torch"])
LABELS = [0, 2, 1, NO_LABEL]


def build(sizes=(8,), shape=(4, 5), num_classes=0, decided=20, **options):
    torch.manual_seed(0)
    options = {"channels": 6, "num_layers": 3, "first_kernel": 5, **options}
    prior = GatedPixelCNN([Grid(shape, size) for size in sizes], num_classes=num_classes, **options).double()
    with torch.no_grad():  # as decided as a trained prior
        for head in prior.network.heads:
            head[-1].weight *= decided
    return prior.eval()


def random_codes(prior, count=2):
    return tuple(torch.randint(0, grid.num_embeddings, (count, *grid.shape)) for grid in prior.layout)


def in_order(grids):
    """(b, ..., m) of all codes of a site and then the next, from (b, ..., h, w) each."""
    return torch.stack([grid.flatten(-2) for grid in grids], -1).flatten(-2)


def first_codes(codes, count):
    """The first so many codes of each sample, and what follows them replaced by nonsense."""
    number = torch.arange(codes[0][0].numel()).view(codes[0].shape[1:]) * len(codes)
    masks = tuple(number + grid < count for grid in range(len(codes)))
    return Known(tuple(grid.masked_fill(~mask, 10**6) for grid, mask in zip(codes, masks, strict=True)), masks)


def same(*drawn):
    return all(torch.equal(*grids) for grids in zip(*drawn, strict=True))


@torch.no_grad()
@each_size
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (4, 7), (7, 4), (16, 12)])
@pytest.mark.parametrize(
    "first_kernel,kernel,num_layers,num_classes", [(7, 3, 3, 0), (3, 5, 3, 3), (5, 3, 1, 3), (3, 7, 2, 0)]
)
def test_the_cache_gives_the_logits_of_the_parallel_pass(sizes, shape, first_kernel, kernel, num_layers, num_classes):
    prior = build(sizes, shape, num_classes, num_layers=num_layers, first_kernel=first_kernel, kernel=kernel).float()
    batch_size = 3 if shape[0] < 16 else 1
    codes = random_codes(prior, batch_size)
    given = Condition(torch.tensor([0, 2, 1])[:batch_size] if num_classes else None)
    expected = prior.logits(codes, given)
    steps = prior.steps(given, batch_size, "torch")
    assert len(steps.order) == len(sizes) * math.prod(shape)
    for grid, (site,) in steps.order:
        logits = steps.next_logits()
        assert logits.shape == (batch_size, 1, sizes[grid])
        torch.testing.assert_close(logits[:, 0], expected[grid].flatten(2)[:, :, site], atol=1e-4, rtol=1e-4)
        steps.append(codes[grid].flatten(1)[:, site : site + 1])


@torch.no_grad()
@each_size
@both_backends
@pytest.mark.parametrize("appended", [[1], [3, 2], [4, 1, 8], [9], [20, 3], [2, 17]])
def test_steps_may_pass_over_known_codes(sizes, backend, appended):
    prior = build(sizes, (5, 4), 3)
    given, codes = Condition(torch.tensor([2, 0])), random_codes(prior)
    steps, listed = prior.steps(given, 2, backend), in_order(codes)
    for count in appended:
        steps.append(listed[:, :count])
        listed = listed[:, count:]
    expected = prior.logits(codes, given)
    for grid, (site,) in steps.order[sum(appended) : sum(appended) + 6]:
        torch.testing.assert_close(steps.next_logits()[:, 0], expected[grid].flatten(2)[:, :, site])
        assert torch.equal(steps.next_logits(), steps.next_logits())
        steps.append(codes[grid].flatten(1)[:, site : site + 1])


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("sizes", [(8,), (8, 5)])
@pytest.mark.slow
def test_compiled_sampling_draws_the_same_codes(sizes):
    prior = build(sizes, (3, 4), 3, kernel=5)
    options = {"labels": [0, 2, 1], "guidance_scale": 2.0}
    assert same(sample(prior, 3, backend="compiled", **options), sample(prior, 3, backend="plain", **options))


def test_the_cache_grows_with_the_width_of_the_grid_and_not_with_its_height():
    def held(height, width):
        steps = build((8, 5), (height, width)).steps(Condition(), 2, "torch")
        parts = [*vars(steps.vertical).values(), *vars(steps.horizontal).values(), *vars(steps).values()]
        tensors = [tensor for part in parts for tensor in (part if isinstance(part, list) else [part])]
        return sum(tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor))

    with torch.no_grad():
        assert held(64, 16) == held(4, 16) < held(4, 32)


@torch.no_grad()
@each_size
@both_backends
@pytest.mark.parametrize("num_known,rows", [(0, [0, 1, 2, 3]), (3, [0, 1, 2, 3]), (36, [2, 3]), (10**3, [3])])
def test_a_watched_sampler_shows_each_row_that_it_draws(sizes, backend, num_known, rows):
    prior = build(sizes, (4, 6), 3)
    known = first_codes(random_codes(prior), num_known * len(sizes) // 3)
    if num_known == 36:
        known = first_codes(random_codes(prior), 12 * len(sizes))
    given, seen = Condition(torch.tensor([2, 0])), []
    for progress in sample_sequential(prior, given, Noise(0, count=2), SamplingConfig(), known, backend, watch=True):
        seen.append([[part.clone() for part in parts] for parts in progress[:2]] + [progress.done])
    *_, (codes, _, last) = seen
    assert last == 1 and [done for *_, done in seen] == sorted({done for *_, done in seen}) and len(seen) == len(rows)
    for row, (at_row, drawn, _) in zip(rows, seen, strict=True):
        for now, mark, end in zip(at_row, drawn, codes, strict=True):
            assert mark[:, : row + 1].all() and torch.equal(now[mark], end[mark]) and not now[~mark].any()
            assert not mark[:, row + 1 :].any() or num_known == 10**3
    (alone,) = sample_sequential(prior, given, Noise(0, count=2), SamplingConfig(), known, backend)
    assert same(alone.codes, codes) and all(mark.all() for mark in alone.drawn)


CONTROLS = {
    "none": {},
    "argmax": {"temperature": 0.0},
    "temperature": {"temperature": 0.7},
    "top-k": {"top_k": 2},
    "top-p": {"top_p": 0.6},
    "guidance": {"guidance_scale": 2.5},
    "unlabelled by guidance": {"guidance_scale": 0.0},
    "all": {"guidance_scale": 1.5, "temperature": 1.3, "top_k": 3, "top_p": 0.9},
}
each_control = pytest.mark.parametrize("controls", CONTROLS.values(), ids=CONTROLS)
CASES = [(controls, LABELS) for controls in CONTROLS.values()]
CASES += [(controls, None) for controls in CONTROLS.values() if "guidance_scale" not in controls]


@pytest.mark.parametrize("sizes", [(8,), (8, 5)], ids=["one", "two"])
@pytest.mark.parametrize("controls,labels", CASES)
@pytest.mark.parametrize("shape,num_known", [((1, 1), 0), ((3, 5), 1), ((5, 3), 8)])
def test_all_backends_draw_the_same_codes(sizes, controls, labels, shape, num_known):
    prior = build(sizes, shape, 3 if labels else 0)
    known = first_codes(random_codes(prior, 4), num_known)
    drawn = [
        sample(prior, 4, labels, seed=5, known=known, backend=backend, **controls) for backend in ("plain", "torch")
    ]
    assert same(*drawn)
    for grid, kept, mask in zip(drawn[0], *known, strict=True):
        assert grid.shape == (4, *shape) and grid.dtype == torch.int64
        assert torch.equal(grid[:, mask], kept[:, mask])


@each_size
@both_backends
def test_a_sample_does_not_depend_on_the_batch_it_is_drawn_in(sizes, backend):
    prior = build(sizes, num_classes=3)
    together = sample(prior, 7, seed=3, backend=backend)
    assert same(together, sample(prior, 7, seed=3, batch_size=3, backend=backend))
    for first, size in ((0, 1), (1, 4), (5, 2)):  # of the classes in turn, as the number of the sample has it
        alone = sample(prior, size, seed=3, first_index=first, backend=backend)
        assert same(alone, [grid[first : first + size] for grid in together])


@both_backends
def test_another_seed_gives_other_samples_and_the_global_generator_does_not_matter(backend):
    prior = build((8, 8))
    torch.manual_seed(1)
    first = sample(prior, 4, seed=0, backend=backend)
    torch.manual_seed(2)
    assert same(sample(prior, 4, seed=0, backend=backend), first)
    assert not same(sample(prior, 4, seed=1, backend=backend), first) and not torch.equal(*first)


@both_backends
@each_size
def test_temperature_zero_takes_the_likeliest_code_whatever_the_seed(sizes, backend):
    prior = build(sizes)
    codes = sample(prior, 2, seed=0, temperature=0.0, backend=backend)
    assert same(codes, sample(prior, 2, seed=1, temperature=0.0, backend=backend))
    assert same(codes, [logits.argmax(1) for logits in prior.logits(codes)])


def restricted(logits, temperature=1.0, top_k=None, top_p=1.0):
    """The probabilities of one site as the controls leave them, one code after the other."""
    if temperature == 0:
        return [float(k == max(range(len(logits)), key=logits.__getitem__)) for k in range(len(logits))]
    weights = [math.exp(logit / temperature) for logit in logits]
    likeliest = sorted(range(len(weights)), key=lambda k: -weights[k])[:top_k]
    total, kept, so_far = sum(weights[k] for k in likeliest), [], 0.0
    for k in likeliest:
        if so_far < top_p * total:
            kept.append(k)
        so_far += weights[k]
    return [weights[k] / sum(weights[k] for k in kept) if k in kept else 0.0 for k in range(len(weights))]


def probabilities(prior, codes, label, guidance_scale=1.0, **controls):
    """Of all samples whose codes these are, by the chain rule, one code after the other."""
    logits = prior.logits(codes, Condition(torch.full((len(codes[0]),), label)))
    if guidance_scale != 1:
        without = prior.logits(codes, Condition(torch.full((len(codes[0]),), NO_LABEL)))
        logits = [u + guidance_scale * (c - u) for c, u in zip(logits, without, strict=True)]
    rows = [grid.flatten(2).mT.tolist() for grid in logits]  # sample, site, code
    chosen = [grid.flatten(1).tolist() for grid in codes]
    return torch.tensor(
        [
            math.prod(
                restricted(site, **controls)[code]
                for of_grid, its_codes in zip(rows, chosen, strict=True)
                for site, code in zip(of_grid[i], its_codes[i], strict=True)
            )
            for i in range(len(codes[0]))
        ]
    )


@each_control
@pytest.mark.parametrize(
    "backend,sizes,shape",
    [("plain", (3,), (2, 2)), ("torch", (3, 2), (1, 2)), ("torch", (2, 2, 3), (2, 1))],
)
@torch.no_grad()
def test_the_samples_have_the_probabilities_of_the_prior_under_every_control(backend, controls, sizes, shape):
    # less decided, so that all controls matter
    prior = build(sizes, shape, 2, decided=5)
    every = [range(size) for _ in range(math.prod(shape)) for size in sizes]
    listed = torch.tensor(list(itertools.product(*every)))
    grids = [listed[:, grid :: len(sizes)].unflatten(1, shape) for grid in range(len(sizes))]
    expected = probabilities(prior, tuple(grids), 1, **controls)
    assert expected.sum().item() == pytest.approx(1, abs=1e-5)
    count = 10_000
    drawn = in_order(sample(prior, count, [1], batch_size=count, backend=backend, **controls))
    places = torch.tensor([math.prod(map(len, every[i + 1 :])) for i in range(len(every))])
    shares = torch.bincount((drawn * places).sum(1), minlength=len(listed)) / count
    assert ((shares - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt() + 1e-4).all()
    assert not shares[expected == 0].any()


@each_size
@both_backends
def test_known_codes_are_continued_as_if_they_had_been_drawn(sizes, backend):
    prior = build(sizes, num_classes=3)
    whole = sample(prior, 3, seed=2, backend=backend)
    for num_known in (1, 2, 5, 7, 12 * len(sizes), 20 * len(sizes)):
        assert same(sample(prior, 3, seed=2, known=first_codes(whole, num_known), backend=backend), whole)


@both_backends
def test_each_sample_may_keep_as_much_as_it_likes(backend):
    prior = build((8, 5), num_classes=3)
    whole = sample(prior, 3, seed=2, backend=backend)
    each = [first_codes([grid[i : i + 1] for grid in whole], count) for i, count in enumerate((0, 25, 7))]
    masks = tuple(torch.stack(masks) for masks in zip(*[known.mask for known in each], strict=True))
    codes = tuple(torch.cat(grids) for grids in zip(*[known.codes for known in each], strict=True))
    assert same(sample(prior, 3, seed=2, known=Known(codes, masks), backend=backend), whole)


class Chain(torch.nn.Module):
    """Another kind of prior, over grids of any number of axes: a code depends on the one before it alone."""

    likelihood, keeps, given_grids = "exact", "first", ()
    controls = frozenset({"temperature", "top_k"})
    conditions = Conditions()

    def __init__(self, shape, grids=(0,)):
        super().__init__()
        torch.manual_seed(1)
        self.layout, self.grids = (Grid(shape, 8),), grids
        self.table = torch.nn.Parameter(torch.randn(9, 8, dtype=torch.float64) * 2)
        self.device = torch.device("cpu")

    def logits(self, codes, given):
        before = torch.nn.functional.pad(codes[0].flatten(1)[:, :-1], (1, 0), value=8)
        return (self.table[before].mT.unflatten(2, self.layout[0].shape),)

    def steps(self, given, batch_size, backend):
        order = [(0, range(site, site + 1)) for site in range(self.layout[0].num_sites)]
        return PlainSteps(self, given, batch_size, order) if backend == "plain" else ChainSteps(self, batch_size, order)

    sample = sample_sequential


class ChainSteps:
    def __init__(self, prior, batch_size, order):
        self.order, self.table = order, prior.table
        self.before = torch.full((batch_size, 1), 8)

    def next_logits(self):
        return self.table[self.before]

    def append(self, codes):
        self.before = codes[:, -1:]


@pytest.mark.parametrize("shape", [(12,), (4, 3), (2, 2, 3)])
def test_any_prior_that_meets_the_contract_can_be_sampled(shape):
    prior = Chain(shape).eval()
    for count in (0, 6):
        known = Known(tuple(torch.randint(0, 8, (3, *shape)) for _ in "1"), ((torch.arange(12) < count).view(shape),))
        drawn = [sample(prior, 3, seed=1, known=known, top_k=4, backend=backend) for backend in ("plain", "torch")]
        assert same(*drawn) and drawn[0][0].shape == (3, *shape)
        assert torch.equal(drawn[0][0].flatten(1)[:, :count], known.codes[0].flatten(1)[:, :count])
    watched = list(sample_sequential(prior, Condition(), Noise(1, count=2), SamplingConfig(), watch=True))
    rows = 12 if len(shape) == 1 else 12 // shape[-1]
    assert len(watched) == rows and watched[-1].done == 1


class GridByGrid(torch.nn.Module):
    """A prior whose steps are whole grids: the codes of one depend on the sum of the grid before."""

    likelihood, keeps, given_grids, grids = "exact", "first", (), (0, 1)
    controls = frozenset({"temperature"})
    conditions = Conditions()
    layout = (Grid((1, 2), 4), Grid((2, 3), 5))
    device = torch.device("cpu")

    def logits(self, codes, given):
        coarse = torch.arange(4.0, dtype=torch.float64)[None, :, None, None].expand(len(codes[0]), 4, 1, 2)
        return coarse, (torch.arange(5)[None] == codes[0].sum((1, 2))[:, None] % 5)[:, :, None, None] * torch.ones(2, 3)

    def steps(self, given, batch_size, backend):
        return PlainSteps(self, given, batch_size, [(0, range(2)), (1, range(6))])

    sample = sample_sequential


def test_a_step_may_be_a_whole_grid():
    prior = GridByGrid().eval()
    coarse, fine = sample(prior, 6, temperature=0.0)
    assert (coarse == 3).all() and (fine == 1).all()  # (3 + 3) % 5
    known = Known((torch.tensor([[[2, 0]]]), torch.zeros(1, 2, 3)), (torch.tensor([[True, False]]), torch.zeros(2, 3)))
    kept, _ = sample(prior, 50, known=known)
    assert (kept[..., 0] == 2).all() and len(kept[..., 1].unique()) > 1
    fine = torch.tensor([[True, False, True], [False, False, False]])  # kept as by a prior of its own
    kept, drawn = sample(prior, 50, known=known._replace(mask=(known.mask[0], fine)), temperature=0.0)
    assert (kept == torch.tensor([2, 3])).all()
    assert torch.equal(drawn, torch.where(fine, 0, 0).expand(50, 2, 3))  # (2 + 3) % 5


class Finer(Chain):
    """A prior of a second grid, whose first code says what the grid before it holds."""

    given_grids = (0,)

    def logits(self, codes, given):
        (logits,) = super().logits(codes, given)
        total = given.codes[0].flatten(1).sum(1) % 8
        logits = logits.flatten(2).clone()
        logits[:, :, 0] = 100.0 * (torch.arange(8) == total[:, None])
        return (logits.unflatten(2, self.layout[0].shape),)

    def steps(self, given, batch_size, backend):
        return super().steps(given, batch_size, "plain")

    sample = sample_sequential


def test_several_priors_draw_coarse_to_fine_each_with_noise_of_its_own():
    priors = [Chain((2, 3)).eval(), Finer((4, 6), (1,)).eval()]
    coarse, fine = sample(priors, 9, seed=4, temperature=[1.0, 0.5])
    assert coarse.shape == (9, 2, 3) and fine.shape == (9, 4, 6)
    assert torch.equal(fine[:, 0, 0], coarse.flatten(1).sum(1) % 8)
    assert torch.equal(sample(priors[0], 9, seed=4)[0], coarse)
    (alone,) = sample(priors[1], 9, seed=4, temperature=0.5, codes=(coarse,))
    assert torch.equal(alone, fine)
    twins = sample([Chain((2, 3), (0,)).eval(), Chain((2, 3), (1,)).eval()], 9, seed=4)
    assert not torch.equal(*twins)
    known = Known((coarse, fine), (torch.ones(2, 3), torch.arange(24).view(4, 6) < 9))
    assert same(sample(priors, 9, seed=4, temperature=[1.0, 0.5], known=known), (coarse, fine))
    configs = [SamplingConfig(), SamplingConfig(temperature=0.5)]
    shown = [
        (progress.done, [int(mark[0].sum()) for mark in progress.drawn])
        for progress in draw(priors, Condition(), Noise(4, count=2), configs, watch=True)
    ]
    assert [marks for _, marks in shown] == [[3, 0], [6, 0], [6, 6], [6, 12], [6, 18], [6, 24]]
    assert shown[-1][0] == 1 and [done for done, _ in shown] == sorted(done for done, _ in shown)


def test_several_priors_that_do_not_fit_together_are_refused():
    coarse, fine = Chain((2, 3)).eval(), Finer((4, 6), (1,)).eval()
    for priors, options, reason in (
        ([], {}, "`prior` is empty"),
        ([fine, coarse], {}, "coarse to fine"),
        ([coarse, coarse], {}, "coarse to fine"),
        ([fine], {}, "`codes`: this prior needs the grids 0"),
        ([coarse, fine], {"temperature": [1.0, 0.5, 0.2]}, "`temperature`: 3 values for 2 priors"),
        ([coarse, fine], {"top_p": 0.5}, "`top_p` has no effect on this prior, a Chain: leave it out"),
        ([coarse, fine], {"labels": [1]}, "unconditional"),
    ):
        with pytest.raises(InputError, match=reason):
            sample(priors, 2, **options)


def test_labels_go_to_those_of_several_priors_that_know_classes():
    labelled, plain = build((8,), num_classes=3), build((8,))
    plain.grids = (1,)
    first, _ = sample([labelled, plain], 4, labels=[2])
    assert torch.equal(first, sample(labelled, 4, labels=[2])[0])


def test_a_prior_in_train_mode_is_refused_and_stays_in_it():
    prior = build().train()
    for backend in ("plain", "torch"):
        with pytest.raises(InputError, match=r"prior\.eval\(\)"):
            sample(prior, 2, backend=backend)
    assert prior.training


def test_backends_are_chosen_by_name(monkeypatch):
    prior = Chain((4,))  # which has no native sampler
    assert choose_backend("auto", prior) == "torch" and choose_backend("plain", prior) == "plain"
    with pytest.raises(InputError, match="`backend` native: this prior has no native sampler; choose `backend` torch"):
        choose_backend("native", prior)
    monkeypatch.setenv("CXX", "true")  # a compiler, as far as the check can see
    with pytest.raises(InputError, match="`backend` compiled: this prior has no compiled sampler; choose torch"):
        choose_backend("compiled", prior)
    with pytest.raises(InputError, match=f"`backend` 'fast': choose one of {', '.join(BACKENDS)}"):
        sample(build(), 1, backend="fast")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match="compiler"):
        choose_backend("compiled", prior)


def test_a_code_of_probability_zero_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(2, 2, 1)
    uniforms = torch.tensor([[0.0, 0.4999999], [0.5, 1 - 2**-53]], dtype=torch.float64)
    assert sample_from_logits(logits, uniforms, SamplingConfig()).tolist() == [[1, 1], [3, 3]]


def test_the_smallest_temperatures_end_at_the_likeliest_code():
    logits, uniforms = torch.tensor([[[1.0, 80.0, 3.0]]]), torch.tensor([[0.9]], dtype=torch.float64)
    assert sample_from_logits(logits, uniforms, SamplingConfig(temperature=1e-38)).tolist() == [[1]]


@pytest.mark.parametrize(
    "controls,kept",
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 1}, [0]),
        ({"top_k": 2}, [0, 1]),  # of equals, the first
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"top_p": 0.001}, [0]),
        ({"top_p": 0.5}, [0]),
        ({"top_p": 0.500001}, [0, 1]),
        ({"top_p": 0.75}, [0, 1]),
        ({"top_p": 0.76}, [0, 1, 2]),
        ({"top_k": 2, "top_p": 2 / 3 - 1e-9}, [0]),  # of what top-k left
        ({"top_k": 2, "top_p": 2 / 3 + 1e-9}, [0, 1]),
    ],
)
def test_top_k_and_top_p_keep_the_fewest_likeliest(controls, kept):
    probabilities = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64)
    left = top_k_top_p(probabilities.expand(2, 3, 4), **controls)
    expected = torch.tensor([p if k in kept else 0 for k, p in enumerate(probabilities.tolist())])
    assert torch.equal(left, expected.double().expand(2, 3, 4))


def masks_of(*kept):
    mask = torch.zeros(4, 5, dtype=torch.bool)
    for site in kept:
        mask.view(-1)[site] = True
    return Known((torch.zeros(1, 4, 5, dtype=torch.int64),), (mask,))


REFUSED = {
    "no label": ({"num_classes": 3, "label_dropout": 0}, {"labels": ["none"]}, "was only trained with labels"),
    "a class beyond the last": ({"num_classes": 3}, {"labels": [3]}, "classes 0 to 2"),
    "a class below no label": ({"num_classes": 3}, {"labels": [-2]}, "classes 0 to 2"),
    "a name": ({"num_classes": 3}, {"labels": "cat"}, "`labels` 'cat'"),
    "too many labels": ({"num_classes": 3}, {"labels": [0, 1, 2]}, "3 labels for 2 samples"),
    "labels without classes": ({}, {"labels": [0]}, "unconditional"),
    "guidance without classes": ({}, {"guidance_scale": 2.0}, "`guidance_scale` 2.0: this prior is unconditional"),
    "guidance from nothing": (
        {"num_classes": 3, "label_dropout": 0}, {"guidance_scale": 2.0}, "was only trained with labels",
    ),
    "guidance to nothing": ({"num_classes": 3}, {"labels": "none", "guidance_scale": 2.0}, "needs `labels`"),
    "prompts": ({}, {"prompts": ["a cat"]}, "`prompts`"),
    "coarser codes": ({}, {"codes": (torch.zeros(1, 2, 2),)}, "`codes`"),
    "too few actions": ({}, {"actions": torch.zeros(3, 2)}, "`actions`: 3 for 2 samples"),
    "inference steps": ({}, {"num_inference_steps": 4}, "`num_inference_steps` has no effect"),
    "no samples": ({}, {"num_samples": 0}, "`num_samples` 0"),
    "a temperature below 0": ({}, {"temperature": -1.0}, "`temperature` -1.0"),
    "a later site": ({}, {"known": masks_of(0, 1, 3)}, "site 3 in raster order, but not all before it"),
    "known codes of another shape": ({}, {"known": Known((torch.zeros(2, 5, 4),), (torch.ones(4, 5),))}, "`known`"),
    "a mask of another shape": ({}, {"known": Known((torch.zeros(2, 4, 5),), (torch.ones(3, 4, 5),))}, "`known`"),
    "known codes of other grids": ({}, {"known": Known((), ())}, "codes of 0 grids, but 1"),
    "a known code beyond the last": (
        {}, {"known": Known((torch.full((2, 4, 5), 8),), (torch.ones(4, 5),))}, "code 8, but the codes are 0 to 7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("options,arguments,reason", REFUSED.values(), ids=REFUSED)
def test_what_a_prior_cannot_follow_is_refused(options, arguments, reason):
    with pytest.raises(InputError, match=reason):
        sample(build(**options), **{"num_samples": 2, **arguments})


def test_guidance_is_refused_without_anything_to_guide_to():
    with pytest.raises(InputError, match="guidance needs `labels`"):
        next(build(num_classes=3).sample(Condition(), Noise(0), SamplingConfig(guidance_scale=2.0)))


def test_classes_are_asked_for_by_number_or_by_name():
    conditions = Conditions(3, ("cat", "dog", "7"), unlabelled=True)
    for written, numbers in (
        (["dog", 2, "0", "none", NO_LABEL], [1, 2, 0, NO_LABEL, NO_LABEL]),
        ([":1", ":none", np.int64(1), np.str_("cat"), torch.tensor(2)], [1, NO_LABEL, 1, 0, 2]),
        (np.array([2, 1, 0, 0, 2], dtype=np.uint8), [2, 1, 0, 0, 2]),
        ("dog", [1] * 5),
        (np.int64(1), [1] * 5),
        (torch.tensor(1), [1] * 5),
        (range(1, 2), [1] * 5),
        (None, [0, 1, 2, 0, 1]),
        ("7", [2] * 5),
        (1, [1] * 5),
        (torch.tensor([2, 1, 0, 0, 2]), [2, 1, 0, 0, 2]),
    ):
        assert conditions.resolve(written, 5).labels.tolist() == numbers
    assert conditions.resolve(None, 2, first_index=4).labels.tolist() == [1, 2]
    assert Conditions().resolve(None, 5) == Condition() == Conditions().given(torch.tensor([1]))
    assert conditions.given(torch.tensor([1])).labels.tolist() == [1] and conditions.given(None) == Condition()


NAMED_AS_NUMBERS = ("10", "2", "none", "1", ":0", "cat", "cat")


@pytest.mark.parametrize(
    "written,number",
    [
        ("10", 0),
        (1, 1),
        (":1", 1),
        ("3", 3),
        (":2", 2),
        (":none", NO_LABEL),
        (NO_LABEL, NO_LABEL),
        (":5", 5),
        (":0", 0),
    ],
)
def test_a_label_that_can_be_read_in_one_way_is_read_so(written, number):
    assert Conditions(7, NAMED_AS_NUMBERS, unlabelled=True).resolve(written, 1).labels.tolist() == [number]


@pytest.mark.parametrize(
    "written,reason",
    [
        ("1", r"'1' may be class 1 \(2\) or class 3 \(1\): write :1 or :3"),
        ("2", r"'2' may be class 1 \(2\) or class 2 \(none\): write :1 or :2"),
        ("none", r"may be class 2 \(none\) or no class: write :2 or :none"),
        ("cat", r"may be class 5 \(cat\) or class 6 \(cat\)"),
    ],
)
def test_a_label_that_can_be_read_in_two_ways_is_refused_with_both(written, reason):
    with pytest.raises(InputError, match=reason):
        Conditions(7, NAMED_AS_NUMBERS, unlabelled=True).resolve(written, 1)


@pytest.mark.parametrize(
    "written", [7, -2, "7", "07", ":cat", "all", True, 1.0, b"1", "²", "9" * 5000, [[1]], {1: 2}.keys]
)
def test_what_is_no_label_is_refused(written):
    with pytest.raises(InputError, match="there are classes 0 to 6"):
        Conditions(7, NAMED_AS_NUMBERS).resolve([written], 1)
    with pytest.raises(InputError, match="classes 0 to 6"):
        Conditions(7, NAMED_AS_NUMBERS).resolve(written, 1)
