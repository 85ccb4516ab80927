"""Both samplers: the same codes, from (seed, index) alone, with the right probabilities."""

import itertools
import math
import shutil

import pytest
import torch

from codegrid.stage2_prior import NO_LABEL, Controls, GatedPixelCNN, sample_cached, sample_plain
from codegrid.stage2_prior.sampling.logits import choose_codes, keep_likeliest
from codegrid.stage2_prior.sampling.sequential import draw_uniforms

both_samplers = pytest.mark.parametrize("sampler", [sample_plain, sample_cached])


def build(num_classes=0, num_embeddings=8, **options):
    torch.manual_seed(0)
    prior = GatedPixelCNN(
        num_embeddings, 6, num_classes=num_classes, **{"num_layers": 3, "first_kernel": 5, "kernel": 3, **options}
    ).double()
    with torch.no_grad():  # as decided as a trained prior
        prior.head[-1].weight *= 20
    return prior.eval()


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("height,width", [(1, 1), (1, 6), (6, 1), (4, 7), (7, 4), (64, 64)])
@pytest.mark.parametrize("first_kernel,kernel,num_layers", [(7, 3, 3), (3, 5, 3), (5, 3, 1), (3, 7, 2)])
def test_the_cache_gives_the_logits_of_the_parallel_pass(num_classes, height, width, first_kernel, kernel, num_layers):
    prior = build(num_classes, num_layers=num_layers, first_kernel=first_kernel, kernel=kernel).float()
    batch_size = 3 if height < 64 else 1
    codes = torch.randint(0, 8, (batch_size, height, width))
    labels = torch.tensor([0, 2, 1])[:batch_size] if num_classes else None
    with torch.no_grad():
        expected = prior(codes, labels).flatten(2)
        cache = prior.new_cache(batch_size, height, width, labels)
        for site in range(height * width):
            torch.testing.assert_close(cache.next_logits(), expected[:, :, site], atol=1e-4, rtol=1e-4)
            cache.append(codes.flatten(1)[:, site])


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_sampling_draws_the_same_codes():
    prior, labels = build(3, label_dropout=0.1, kernel=5), [0, 2, 1]
    expected = sample_plain(prior, 3, 4, 6, labels, guidance_scale=2.0)
    prior.compile_sampling()
    assert torch.equal(sample_cached(prior, 3, 4, 6, labels, guidance_scale=2.0), expected)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_the_cache_may_pass_over_known_rows(rows):
    prior = build(3)
    codes, labels = torch.randint(0, 8, (2, 5, 4)), torch.tensor([2, 0])
    with torch.no_grad():
        expected = prior(codes, labels)
        cache = prior.new_cache(2, 5, 4, labels)
        cache.append_rows(codes[:, :rows])
        for column in range(4):
            torch.testing.assert_close(cache.next_logits(), expected[:, :, rows, column])
            cache.append(codes[:, rows, column])


def test_the_cache_grows_with_the_width_of_the_grid_and_not_with_its_height():
    def held(height, width):
        cache = build().new_cache(2, height, width, None)
        parts = [*vars(cache.vertical).values(), *vars(cache.horizontal).values()]
        tensors = [tensor for part in parts for tensor in (part if isinstance(part, list) else [part])]
        return sum(tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor))

    with torch.no_grad():
        assert held(64, 16) == held(4, 16) < held(4, 32)


@both_samplers
@pytest.mark.parametrize("num_known,rows", [(0, [0, 1, 2, 3]), (3, [0, 1, 2, 3]), (6, [1, 2, 3]), (24, [])])
def test_each_row_that_is_drawn_is_shown_once_when_it_is_finished(sampler, num_known, rows):
    prior, seen = build(3), []
    known = torch.randint(0, 8, (2, num_known))
    codes = sampler(prior, 2, 4, 6, [2, 0], known=known, callback=lambda grids, row: seen.append((grids.clone(), row)))
    assert [row for _, row in seen] == rows
    for grids, row in seen:
        assert torch.equal(grids[:, : row + 1], codes[:, : row + 1]) and not grids[:, row + 1 :].any()
    assert torch.equal(codes, sampler(prior, 2, 4, 6, [2, 0], known=known))


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
LABELS = [0, 2, 1, NO_LABEL]
CASES = [(controls, LABELS) for controls in CONTROLS.values()]
CASES += [(controls, None) for controls in CONTROLS.values() if "guidance_scale" not in controls]


@pytest.mark.parametrize("controls,labels", CASES)
@pytest.mark.parametrize("height,width", [(1, 1), (4, 7), (7, 4)])
@pytest.mark.parametrize("num_known", [0, 1, 9])
def test_both_samplers_draw_the_same_codes(controls, labels, height, width, num_known):
    prior = build(3 if labels else 0, label_dropout=0.1)
    known = torch.randint(0, 8, (4, min(num_known, height * width)))
    drawn = [
        sampler(prior, 4, height, width, labels=labels, seed=5, known=known, **controls)
        for sampler in (sample_plain, sample_cached)
    ]
    assert torch.equal(*drawn)
    assert drawn[0].shape == (4, height, width) and drawn[0].dtype == torch.int64
    assert torch.equal(drawn[0].flatten(1)[:, : known.shape[1]], known)


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


def probability(prior, grid, label, guidance_scale=1.0, **controls):
    """Of a whole grid (2, 2), by the chain rule."""
    labels = None if label is None else torch.tensor([label])
    logits = prior(grid[None], labels)[0].flatten(1).T
    if guidance_scale != 1:
        without = prior(grid[None], torch.tensor([NO_LABEL]))[0].flatten(1).T
        logits = without + guidance_scale * (logits - without)
    sites = zip(logits.tolist(), grid.flatten().tolist(), strict=True)
    return math.prod(restricted(site, **controls)[code] for site, code in sites)


@both_samplers
@each_control
@torch.no_grad()
def test_the_samples_have_the_probabilities_of_the_prior_under_every_control(sampler, controls):
    prior = build(2, num_embeddings=3, label_dropout=0.1)
    prior.head[-1].weight /= 4  # less decided, so that all controls matter
    grids = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)
    expected = torch.tensor([probability(prior, grid, 1, **controls) for grid in grids])
    assert expected.sum().item() == pytest.approx(1, abs=1e-5)
    drawn = sampler(prior, 20_000, 2, 2, labels=[1] * 20_000, seed=0, **controls)
    numbers = (drawn.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1)
    shares = torch.bincount(numbers, minlength=81) / len(drawn)
    assert ((shares - expected).abs() < 5 * (expected * (1 - expected) / len(drawn)).sqrt() + 1e-4).all()
    assert not shares[expected == 0].any()


@both_samplers
def test_known_codes_are_gone_on_from_as_if_they_had_been_drawn(sampler):
    prior = build(3)
    whole = sampler(prior, 3, 4, 5, labels=[0, 1, 2], seed=2)
    for num_known in (1, 5, 12, 20):
        assert torch.equal(
            sampler(prior, 3, 4, 5, labels=[0, 1, 2], seed=2, known=whole.flatten(1)[:, :num_known]), whole
        )


class Chain(torch.nn.Module):
    """Another kind of prior: a code depends on the one before it alone."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(9, 8, dtype=torch.float64) * 2)

    def forward(self, codes, labels):
        before = torch.nn.functional.pad(codes.flatten(1)[:, :-1], (1, 0), value=8)
        return self.table[before].permute(0, 2, 1).unflatten(2, codes.shape[1:])

    def new_cache(self, batch_size, height, width, labels):
        self.before = torch.full((batch_size,), 8)
        return self

    def append_rows(self, codes):
        self.before = codes[:, -1, -1]

    def next_logits(self):
        return self.table[self.before]

    def append(self, codes):
        self.before = codes


def test_any_prior_that_meets_the_contract_can_be_sampled():
    prior = Chain().eval()
    for known in (None, torch.randint(0, 8, (3, 6))):
        drawn = [sampler(prior, 3, 4, 5, seed=1, known=known, top_k=4) for sampler in (sample_plain, sample_cached)]
        assert torch.equal(*drawn)


@both_samplers
def test_sampling_leaves_the_prior_in_the_mode_it_was_in(sampler):
    prior = build(dropout=0.5).train()
    assert torch.equal(sampler(prior, 2, 3, 3), sampler(prior, 2, 3, 3))
    assert prior.training


def test_a_code_of_probability_zero_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(4, 1)
    uniforms = torch.tensor([0.0, 0.4999999, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert choose_codes(logits, uniforms, Controls()).tolist() == [1, 1, 3, 3]


def test_the_smallest_temperatures_end_at_the_likeliest_code():
    logits, uniforms = torch.tensor([[1.0, 80.0, 3.0]]), torch.tensor([0.9], dtype=torch.float64)
    assert choose_codes(logits, uniforms, Controls(temperature=1e-38)).tolist() == [1]


@pytest.mark.parametrize(
    "controls,kept",
    [
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
    probabilities = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.5, 0.25, 0.25, 0.0]], dtype=torch.float64)
    left = keep_likeliest(probabilities, Controls(**controls))
    expected = torch.tensor([p if k in kept else 0 for k, p in enumerate(probabilities[0].tolist())])
    assert torch.equal(left[0], expected.double()) and torch.equal(left[0], left[1])


@pytest.mark.parametrize(
    "controls", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"guidance_scale": math.nan}]
)
def test_controls_out_of_their_range_are_refused(controls):
    with pytest.raises(ValueError, match=next(iter(controls))):
        Controls(**controls)


@both_samplers
@pytest.mark.parametrize(
    "options,arguments,reason",
    [
        ({"num_classes": 3}, {"labels": [NO_LABEL]}, "learnt no grids without a label"),
        ({"num_classes": 3}, {}, "learnt no grids without a label"),
        ({"num_classes": 3}, {"labels": [3]}, "classes 0 to 2"),
        ({"num_classes": 3}, {"labels": [-2]}, "classes 0 to 2"),
        ({"num_classes": 3}, {"labels": [0, 1]}, "one for each of 1 grids"),
        ({}, {"labels": [0]}, "unconditional"),
        ({}, {"guidance_scale": 2.0}, "needs labels"),
        ({}, {"known": torch.zeros(1, 21, dtype=torch.int64)}, "20 sites"),
    ],
)
def test_what_a_prior_cannot_follow_is_refused(sampler, options, arguments, reason):
    with pytest.raises(ValueError, match=reason):
        sampler(build(**options), 1, 4, 5, **arguments)


def test_uniforms_follow_from_seed_and_index():
    together = draw_uniforms(5, 3, seed=1, first_index=10)
    assert torch.equal(together[2:], draw_uniforms(3, 3, seed=1, first_index=12))
    assert len(together.flatten().unique()) == 15
