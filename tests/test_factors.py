"""One code as several: lattices whose code is too large for a prior give several grids."""

import pytest
import torch
from small_quantizers import draw_latents

from codegrid import VQVAE
from codegrid.errors import InputError
from codegrid.stage1_vqvae.quantizers import QUANTIZERS
from codegrid.stage1_vqvae.quantizers.factors import MAX_FACTOR, Factors


@pytest.mark.parametrize(
    ("levels", "num_factors", "sizes"),
    [
        ((8, 8, 8), None, [512]),
        ((2,) * 12, None, [4096]),
        ((2,) * 13, None, [64, 128]),
        ((2,) * 18, None, [512, 512]),
        ((2,) * 24, None, [4096, 4096]),
        ((8, 8, 8, 6, 5), None, [64, 240]),
        ((1000, 7, 1000), None, [1000, 7, 1000]),
        ((2,) * 18, 1, [2**18]),
        ((2,) * 19, 3, [64, 64, 128]),
        ((3, 4, 5, 2), 4, [3, 4, 5, 2]),
    ],
    ids=str,
)
def test_a_code_is_shared_out_evenly_and_by_default_to_as_few_grids_as_a_prior_can_learn(levels, num_factors, sizes):
    assert [grid.num_embeddings for grid in Factors(levels, num_factors).layout((3, 5))] == sizes
    assert num_factors or max(sizes) <= MAX_FACTOR


CASES = {
    "fsq": ({"fsq_levels": (3, 4, 5, 2)}, [2, 3, 4]),
    "lfq": ({"num_embeddings": 2**9}, [2, 3, 9]),
    "bsq": ({"num_embeddings": 2**9}, [2, 3, 9]),
}


@pytest.mark.parametrize("name", CASES)
def test_factors_change_the_codes_alone_and_each_digit_keeps_its_place(name):
    options, counts = CASES[name]
    whole = QUANTIZERS[name](**options, num_factors=1)
    latents = draw_latents(2, whole.embedding_dim, 4, 3)
    vectors, (code,), losses = whole(latents)
    for count in counts:
        split = QUANTIZERS[name](**options, num_factors=count)
        ours = split(latents)
        assert len(ours.codes) == count and torch.equal(ours.vectors, vectors)
        assert all(of_grid.is_contiguous() for of_grid in ours.codes)
        assert ours.losses.terms.keys() == losses.terms.keys() and ours.losses.total == losses.total
        joint, place = 0, 1
        for of_grid, grid in zip(ours.codes, split.layout((4, 3)), strict=True):
            joint, place = joint + of_grid * place, place * grid.num_embeddings
        assert torch.equal(joint, code) and place == whole.num_embeddings


def test_entries_of_a_large_code_are_listed_by_grid():
    quantizer = QUANTIZERS["lfq"](num_embeddings=2**18)
    first, second = quantizer.entries(0), quantizer.entries(1)
    assert first.shape == second.shape == (512, 18)
    assert not first[:, 9:].any() and not second[:, :9].any() and (first[:, :9].abs() == 1).all()
    assert torch.equal(first[5] + second[300], quantizer.look_up((torch.tensor([5]), torch.tensor([300])))[0])


def test_a_saved_model_that_does_not_tell_its_factors_has_the_grid_that_it_had():
    tokenizer = VQVAE(quantizer="fsq", hidden_channels=8)
    config = {name: value for name, value in tokenizer.config.items() if name != "num_factors"}
    assert VQVAE(**config).layout == tokenizer.layout and len(tokenizer.layout) == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fsq", {"num_factors": 4}, "`num_factors` 4: the code has only 3 numbers to share out"),
        ("lfq", {"num_factors": 10}, "`num_factors` 10: the code has only 9 numbers"),
        ("bsq", {"num_factors": 0}, "`num_factors` 0: it must be a whole number from 1 to 24"),
        ("lfq", {"num_embeddings": 500}, "`num_embeddings` 500: it must be a power of two"),
        ("bsq", {"num_embeddings": 1}, "`num_embeddings` 1: it must be a power of two"),
        ("lfq", {"num_embeddings": 2**25}, "`num_embeddings` 33554432: it must be a power of two"),
        ("bsq", {"embedding_dim": 9}, "`embedding_dim`: BSQuantizer has no such option"),
        ("lfq", {"entropy_temperature": 0.0}, "`entropy_temperature` 0.0"),
    ],
)
def test_a_code_that_cannot_be_is_refused_by_name(name, options, message):
    with pytest.raises(InputError, match=message):
        QUANTIZERS[name](**options)
