"""The native sampler: the logits and codes of the other backends, the same bits however the work is split."""

import math

import pytest
import torch
from hypothesis import given as with_any
from hypothesis import settings as tries
from hypothesis import strategies as st
from sanitized import run_sanitized
from test_sampling import CONTROLS, LABELS, build, first_codes, in_order, random_codes, same

from codegrid.codes import Condition, Known
from codegrid.native.build import library_or_reason, load_library
from codegrid.noise import Noise
from codegrid.sampling_config import SamplingConfig
from codegrid.stage2_prior import sample
from codegrid.stage2_prior.native import packing
from codegrid.stage2_prior.native.steps import NativeSteps
from codegrid.stage2_prior.native.structures import PIXELCNN
from codegrid.stage2_prior.sampling.sequential import sample_sequential

pytestmark = pytest.mark.skipif(isinstance(library_or_reason(PIXELCNN), str), reason=f"{library_or_reason(PIXELCNN)}")
ODD = {"channels": 33, "num_layers": 3, "first_kernel": 5}


def floats(*args, **options):
    return build(*args, **options).float()


def compare_logits(prior, steps, codes, given, atol=1e-4):
    expected = prior.logits(codes, given)
    for grid, (site,) in steps.order:
        logits = steps.next_logits()
        torch.testing.assert_close(logits[:, 0], expected[grid].flatten(2)[:, :, site], atol=atol, rtol=1e-4)
        steps.append(codes[grid].flatten(1)[:, site : site + 1])


@torch.no_grad()
@tries(max_examples=15, deadline=None)
@with_any(
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 6)),
    kernels=st.tuples(st.sampled_from([3, 5, 7]), st.sampled_from([3, 5, 7])),
    sizes_of=st.tuples(st.integers(1, 40), st.integers(1, 4), st.integers(1, 14), st.sampled_from([0, 3])),
    most=st.sampled_from([0, 2**24]),  # without tables, and with them
)
def test_its_logits_are_those_of_the_parallel_pass(sizes, shape, kernels, sizes_of, most):
    channels, num_layers, count, num_classes = sizes_of
    options = {"first_kernel": kernels[0], "kernel": kernels[1], "channels": channels, "num_layers": num_layers}
    prior, codes = floats(sizes, shape, num_classes, **options), None
    codes = random_codes(prior, count)
    given = Condition(torch.arange(count) % 3 if num_classes else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MOST_OF_TABLES", most)
        compare_logits(prior, prior.steps(given, count, "native"), codes, given)


@torch.no_grad()
@pytest.mark.parametrize("appended", [[1], [3, 2], [4, 1, 8], [9], [20, 3], [2, 17]])
def test_its_steps_may_pass_over_known_codes(appended):
    prior = floats((8, 5), (5, 4), 3)
    given, codes = Condition(torch.tensor([2, 0])), random_codes(prior)
    steps, listed = prior.steps(given, 2, "native"), in_order(codes)
    for count in appended:
        steps.append(listed[:, :count])
        listed = listed[:, count:]
    expected = prior.logits(codes, given)
    for grid, (site,) in steps.order[sum(appended) : sum(appended) + 6]:
        logits = steps.next_logits()
        torch.testing.assert_close(logits[:, 0], expected[grid].flatten(2)[:, :, site], atol=1e-4, rtol=1e-4)
        assert torch.equal(logits, steps.next_logits())
        steps.append(codes[grid].flatten(1)[:, site : site + 1])
    with pytest.raises(IndexError, match="codes 8 to 9"):
        prior.steps(given, 2, "native").append(torch.tensor([[8], [9]]))


@pytest.mark.parametrize(
    "sizes,labels,num_known", [((70,), LABELS, 8), ((70,), None, 0), ((8, 33), LABELS, 0), ((8, 33), LABELS, 8)]
)
@pytest.mark.parametrize("controls", CONTROLS.values(), ids=CONTROLS)
def test_it_draws_the_codes_of_the_plain_sampler(sizes, labels, controls, num_known):
    if labels is None and "guidance_scale" in controls:
        labels = LABELS
    prior = floats(sizes, (3, 5), 3 if labels else 0, **ODD)
    known = first_codes(random_codes(prior, 4), num_known)
    plain, native = (
        sample(prior, 4, labels, seed=5, known=known, backend=backend, **controls) for backend in ("plain", "native")
    )
    assert same(plain, native)


@pytest.mark.parametrize("controls", [{}, {"guidance_scale": 2.0, "top_k": 30, "top_p": 0.9}])
def test_its_bits_do_not_depend_on_batches_or_threads(controls):
    prior = floats((64, 64), (3, 4), 3, **ODD)
    whole = sample(prior, 256, seed=1, batch_size=256, backend="native", **controls)
    for batch_size in (16, 13):
        assert same(sample(prior, 256, seed=1, batch_size=batch_size, backend="native", **controls), whole)
    alone = [sample(prior, 1, seed=1, first_index=i, backend="native", **controls) for i in range(0, 256, 17)]
    assert same([torch.cat(grids) for grids in zip(*alone, strict=True)], [grid[::17] for grid in whole])
    threads = torch.get_num_threads()
    try:
        for count in (2, 5):
            torch.set_num_threads(count)
            assert same(sample(prior, 256, seed=1, batch_size=256, backend="native", **controls), whole)
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def test_its_logits_have_the_same_bits_in_any_batch():
    prior = floats((64,), (3, 4), 3, **ODD)
    codes, labels = random_codes(prior, 29), torch.arange(29) % 3

    def logits(rows):
        steps, all_logits = prior.steps(Condition(labels[rows]), len(labels[rows]), "native"), []
        for _, (site,) in steps.order:
            all_logits.append(steps.next_logits())
            steps.append(codes[0][rows].flatten(1)[:, site : site + 1])
        return torch.cat(all_logits, 1)

    whole = logits(slice(29))
    for count in range(1, 14):  # every size of a tile
        assert torch.equal(logits(slice(count)), whole[:count])


@torch.no_grad()
@pytest.mark.parametrize("num_known,rows", [(0, 4), (3, 4), (12, 2), (1000, 1)])
def test_watched_it_shows_each_row_that_it_draws(num_known, rows):
    prior = floats((8, 5), (4, 6), 3)
    known, given = first_codes(random_codes(prior), 2 * num_known), Condition(torch.tensor([2, 0]))
    seen = [
        [[part.clone() for part in parts] for parts in progress[:2]]
        for progress in sample_sequential(
            prior, given, Noise(0, count=2), SamplingConfig(), known, "native", watch=True
        )
    ]
    assert len(seen) == rows
    for codes, drawn in seen:
        for now, mark, end in zip(codes, drawn, seen[-1][0], strict=True):
            assert torch.equal(now[mark], end[mark])
    (alone,) = sample_sequential(prior, given, Noise(0, count=2), SamplingConfig(), known, "native")
    assert same(alone.codes, seen[-1][0])


def known_of_each(prior, count):
    """Samples that keep 0, 7, 14, ... of their first codes."""
    whole = random_codes(prior, count)
    each = [first_codes([grid[i : i + 1] for grid in whole], 7 * i) for i in range(count)]
    masks = tuple(torch.stack(masks) for masks in zip(*[known.mask for known in each], strict=True))
    return Known(tuple(torch.cat(grids) for grids in zip(*[known.codes for known in each], strict=True)), masks)


def test_each_sample_may_keep_as_much_as_it_likes():
    prior = floats((8, 5), num_classes=3)
    known = known_of_each(prior, 4)
    assert same(*(sample(prior, 4, seed=2, known=known, backend=backend) for backend in ("plain", "native")))


@pytest.mark.parametrize(
    "controls,left", [({"top_k": 3}, 3), ({"top_p": 0.5}, 20), ({"top_k": 10, "top_p": 0.5}, 5), ({"top_p": 1e-300}, 1)]
)
def test_of_codes_that_are_equally_likely_the_first_ones_stay(controls, left):
    prior = floats((40,), (6, 6), decided=0)
    torch.nn.init.zeros_(prior.network.heads[0][-1].bias)
    (codes,) = sample(prior, 20, backend="native", **controls)
    assert set(codes.flatten().tolist()) == set(range(left))
    assert not sample(prior, 1, backend="native", temperature=0.0)[0].any()


@pytest.mark.parametrize("temperature", [1e-320, 1e-40, 1e40, 1e308])
def test_it_draws_codes_at_any_temperature(temperature):
    prior = floats((40,), (6, 6), decided=5)
    (codes,) = sample(prior, 9, backend="native", temperature=temperature)
    if temperature < 1:
        assert torch.equal(codes, sample(prior, 9, backend="native", temperature=0.0)[0])
    else:
        assert codes.unique().tolist() == list(range(40))


@torch.no_grad()
@pytest.mark.parametrize("value", [math.inf, math.nan, 1e38])
def test_weights_that_overflow_give_codes_of_the_grid(value):
    prior = floats((5,), (2, 3))
    prior.network.heads[0][-1].bias.fill_(value)
    (codes,) = sample(prior, 9, top_k=3, top_p=0.9, backend="native")
    assert 0 <= codes.min() <= codes.max() < 5


def test_weights_that_were_changed_in_any_way_are_seen():
    prior = floats()
    drawn = [sample(prior, 30, backend="native")]
    prior.network.layers[1].horizontal.weight.data[0, 0] += 3  # which no version tells
    drawn.append(sample(prior, 30, backend="native"))
    assert not same(*drawn) and same(drawn[1], sample(prior, 30, backend="plain"))


def test_torchs_defaults_change_nothing():
    drawn = sample(floats(), 30, backend="native")
    prior = floats()
    torch.set_default_dtype(torch.float64)
    try:
        assert same(sample(prior, 30, backend="native"), drawn)
        steps = prior.steps(Condition(), 2, "native")
        assert torch.allclose(steps.next_logits()[:, 0], prior.logits(random_codes(prior))[0][:, :, 0, 0], atol=1e-4)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("flags", [("-march=native", "-mno-avx512f"), ("-march=native", "-mno-avx"), ("-O0",)])
def test_narrower_vectors_give_the_same_logits(flags):
    prior = floats((70, 5), (4, 5), 3, **ODD)
    codes, rows = random_codes(prior, 7), torch.arange(7) % 3
    steps = NativeSteps(prior.network, prior.layout, 7, rows, library=load_library(PIXELCNN, *flags))
    compare_logits(prior, steps, codes, Condition(rows))


SANITIZED = """
import torch
from codegrid.stage2_prior import sample
from codegrid.native.build import load_library
from codegrid.stage2_prior.native import packing, steps, structures
from sanitized import FLAGS
from test_conditioned_pixelcnn import FAMILIES, build, random_codes
from test_native import ODD, floats, known_of_each
library = load_library(structures.PIXELCNN, *FLAGS)
steps.library_or_reason = lambda _: library
for packing.MOST_OF_TABLES in (2**24, 0):
    prior = floats((70, 5), (4, 5), 3, **ODD)
    torch.set_num_threads(2)
    for controls in ({}, {"guidance_scale": 2.0, "top_k": 30, "top_p": 0.9}, {"temperature": 0.0}):
        sample(prior, 7, backend="native", known=known_of_each(prior, 7), **controls)
for family in FAMILIES.values():
    prior = build(family, 3, condition_channels=5).float()
    sample(prior, 7, backend="native", codes=random_codes(prior.given_layout, 7), guidance_scale=2.0)
"""


@pytest.mark.slow
def test_it_reads_and_writes_nothing_that_is_not_its_own():
    run_sanitized(SANITIZED)
