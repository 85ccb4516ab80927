"""The contract of quantizers: what each one in the table does, by name. Where they go wrong is in test_traps.py."""

import copy
import json

import pytest
import torch
from einops import rearrange
from small_quantizers import (
    CASES,
    MIXING,
    SMALL,
    assert_same_state,
    build,
    draw_latents,
    moment,
    state_of,
    train_step,
)

from codegrid.errors import InputError
from codegrid.stage1_vqvae.quantizers import QUANTIZERS

every_case = pytest.mark.parametrize("case", CASES)
every_quantizer = pytest.mark.parametrize("name", QUANTIZERS)


@every_case
@pytest.mark.parametrize("sites", [(6,), (3, 5), (2, 3, 4)])
def test_latents_may_have_one_to_three_site_axes(case, sites):
    quantizer = build(case)
    vectors, codes, losses = quantizer(draw_latents(2, 4, *sites))
    assert vectors.shape == (2, 4, *sites) and quantizer.embedding_dim == 4
    layout = quantizer.layout(sites)
    assert layout[-1].shape == sites
    for of_grid, grid in zip(codes, layout, strict=True):
        assert of_grid.shape == (2, *grid.shape) and of_grid.dtype == torch.int64
        assert 0 <= of_grid.min() <= of_grid.max() < grid.num_embeddings
    assert all(term.shape == () for term in losses.terms.values())


@every_case
@pytest.mark.parametrize("channels_last", [False, True])
def test_codes_look_up_the_vectors_that_the_decoder_sees_bit_for_bit(case, channels_last):
    quantizer, latents = build(case), draw_latents(2, 4, 3, 5)
    if channels_last:
        latents = latents.to(memory_format=torch.channels_last)
    for when in (None, moment()):
        vectors, codes, _ = quantizer(latents, when)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(quantizer.encode(latents), codes, strict=True))
        again = quantizer.look_up(codes)
        assert torch.equal(again, vectors) or (when and case in MIXING)
        assert again.stride() == vectors.stride()  # or the decoder rounds otherwise


@every_case
def test_entries_are_the_vectors_of_the_codes(case):
    quantizer, latents = build(case), draw_latents(2, 4, 3, 5)
    vectors, codes, _ = quantizer(latents)
    layout = quantizer.layout((3, 5))
    for number, grid in enumerate(layout):
        assert quantizer.entries(number).shape == (grid.num_embeddings, 4)
        assert not quantizer.entries(number).requires_grad
    if all(grid.shape == (3, 5) for grid in layout):  # those of coarser grids are enlarged before they are added
        total = sum(quantizer.entries(grid)[of_grid] for grid, of_grid in enumerate(codes))
        torch.testing.assert_close(total, rearrange(vectors, "b d ... -> b ... d"))


@every_case
def test_without_a_moment_nothing_is_noted_not_even_in_train_mode(case):
    quantizer = build(case)
    before = state_of(quantizer)
    quantizer.encode(draw_latents(2, 4, 3, 5))
    quantizer(draw_latents(2, 4, 3, 5))
    quantizer.after_step(10, 0)  # of nothing
    assert_same_state(quantizer, before)


@every_case
def test_the_gradient_passes_straight_to_what_is_rounded(case):
    quantizer, latents = build(case), draw_latents(2, 4, 3, 5).requires_grad_()
    vectors = quantizer(latents).vectors
    weights = torch.randn_like(vectors)
    gradient = torch.autograd.grad((vectors * weights).sum(), latents)[0]
    before = [getattr(quantizer, name) for name in ("bound", "soften") if hasattr(quantizer, name)]
    rounded = before[0](latents) if before else latents
    assert torch.equal(gradient, torch.autograd.grad(rounded, latents, weights)[0])


@every_case
def test_under_autocast_codes_are_those_of_float32(case):
    quantizer, latents = build(case), draw_latents(64, 4, 30)
    for given in (latents, latents.bfloat16()):
        expected, vectors = quantizer.encode(given.float()), quantizer(given.float()).vectors
        with torch.autocast("cpu", torch.bfloat16):
            codes, result = quantizer.encode(given), quantizer(given)
        for ours in (codes, result.codes):
            assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
        assert torch.equal(result.vectors, vectors)
        assert all(term.dtype == torch.float32 for term in result.losses.terms.values())


@every_case
def test_a_model_in_half_precision_encodes_as_it_decodes(case):
    quantizer, latents = build(case).bfloat16(), draw_latents(64, 4, 30).bfloat16()
    vectors, codes, _ = quantizer(latents)
    assert vectors.dtype == torch.bfloat16 and torch.equal(quantizer.look_up(codes), vectors)
    assert all(torch.equal(a, b) for a, b in zip(quantizer.encode(latents), codes, strict=True))


@every_case
def test_codes_of_a_sample_do_not_depend_on_the_batch(case):
    quantizer, latents = build(case), draw_latents(6, 4, 3, 5)
    quantizer(latents, moment())
    (alone, together) = quantizer.encode(latents[2:3]), quantizer.encode(latents)
    assert all(torch.equal(a[0], b[2]) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("options", [{}, {"kmeans_steps": 2}, {"distance": "cosine"}])
@every_case
def test_a_step_in_pieces_moves_the_codebook_once_as_the_whole_batch_does(case, options):
    states = []
    for pieces in (1, 3):
        quantizer = build(case, **options)
        for step in range(5):
            train_step(quantizer, *draw_latents(6, 4, 5, seed=step).chunk(pieces), step=step)
        states.append(quantizer.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value)


@every_case
def test_save_load_and_a_step_equal_an_uninterrupted_step(case):
    quantizer, loaded = build(case), build(case)
    for step in range(5):
        train_step(quantizer, draw_latents(2, 4, 3, 5, seed=step), step=step)
    loaded.load_state_dict(copy.deepcopy(quantizer.state_dict()))
    for step in range(5, 8):
        for each in (quantizer, loaded):
            train_step(each, draw_latents(2, 4, 3, 5, seed=step), step=step)
    assert_same_state(loaded, quantizer.state_dict())


@every_case
def test_its_config_builds_a_quantizer_again(case):
    quantizer = build(case)
    config = json.loads(json.dumps(quantizer.config))
    again = type(quantizer)(**config)
    assert again.config == quantizer.config and again.layout((3,)) == quantizer.layout((3,))
    again.load_state_dict(quantizer.state_dict())


@every_quantizer
def test_weights_are_float32_whatever_the_default_is(name):
    torch.set_default_dtype(torch.float64)
    try:
        quantizer = QUANTIZERS[name](**SMALL[name])
    finally:
        torch.set_default_dtype(torch.float32)
    tensors = [*quantizer.parameters(), *quantizer.buffers()]
    assert all(tensor.dtype == torch.float32 for tensor in tensors if tensor.is_floating_point())


@every_quantizer
def test_defaults_train_on_any_grid(name):
    quantizer = QUANTIZERS[name]().train()
    for sites in ((7,), (3, 4)):
        train_step(quantizer, draw_latents(2, quantizer.embedding_dim, *sites))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ema", {"anchors": "random"}, "`anchors`: EMAQuantizer has no such option"),
        ("ema", {"decay": 1.0}, "`decay` 1.0"),
        ("gradient", {"num_embeddings": 0}, "`num_embeddings` 0"),
        ("clustered", {"anchors": "middle"}, "`anchors` 'middle': choose one of random, closest"),
        ("clustered", {"estimator": "copy"}, "`estimator` 'copy': choose one of straight-through, rotation"),
        ("clustered", {"anchor_once": 1}, "`anchor_once` 1: it must be true or false"),
        ("fsq", {"num_embeddings": 8}, "`num_embeddings`: FSQuantizer has no such option"),
        ("fsq", {"fsq_levels": (8, 1)}, "`fsq_levels` 1"),
        ("fsq", {"fsq_levels": ()}, "`fsq_levels` .*at least one"),
        ("fsq", {"fsq_levels": [1000] * 3}, "`fsq_levels` .*product of at most 16,777,216"),
        ("residual", {"num_quantizers": 0}, "`num_quantizers` 0"),
        ("residual", {"codebook": "fsq"}, "`codebook` 'fsq': choose a quantizer that has a codebook"),
        ("residual", {"codebook": "residual"}, "`codebook` 'residual'"),
        ("residual", {"codebook": "nothing"}, "`codebook` 'nothing'"),
        ("residual", {"anchors": "random"}, "`anchors`: EMAQuantizer has no such option"),
        ("residual", {"num_groups": 3}, "`embedding_dim` 64: `num_groups` 3 does not divide it: .*, for example 63"),
        ("residual", {"num_groups": 64, "num_quantizers": 5}, "`num_groups` 64: times `num_quantizers` 5 is more than"),
        ("residual", {"codes_dropout": 1.5}, "`codes_dropout` 1.5"),
        ("residual", {"codes_temperature": 0.5, "estimator": "rotation"}, "`estimator`"),
        ("product", {"num_quantizers": 3}, "`embedding_dim` 64: `num_quantizers` 3 does not divide it: .*example 63"),
        ("product", {"num_quantizers": 8, "embedding_dim": 4}, "`embedding_dim` 4: .*, for example 8"),
        ("product", {"codebook": "residual"}, "`codebook` 'residual'"),
        ("product", {"shared": True}, "`shared`: EMAQuantizer has no such option"),
        ("multiscale", {"num_quantizers": 2}, "`num_quantizers`: EMAQuantizer has no such option"),
        ("multiscale", {"codebook": "multiscale"}, "`codebook` 'multiscale': choose a quantizer that has a codebook"),
        ("multiscale", {"phi_share": 1.5}, "`phi_share` 1.5"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(name, options, message):
    with pytest.raises(InputError, match=message):
        QUANTIZERS[name](**options)
