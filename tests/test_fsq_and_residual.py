"""Finite scalar quantization, against plain NumPy."""

import math

import numpy as np
import pytest
import torch
from small_quantizers import draw_latents, flatten

from codegrid.stage1_vqvae.quantizers import QUANTIZERS


def numpy_fsq(latents, levels):
    """Codes (n,), vectors (n, D) and their slopes (n, D) of latents (n, D), one number at a time."""
    codes, vectors, slopes = np.zeros(len(latents), np.int64), np.zeros(latents.shape), np.zeros(latents.shape)
    for row, latent in enumerate(latents):
        place = 1
        for axis, (number, count) in enumerate(zip(latent, levels, strict=True)):
            half, offset = (count - 1) * (1 - 1e-3) / 2, 0.5 if count % 2 == 0 else 0.0
            shift = np.arctanh(offset / half) if count > 2 else 0.0
            level = round(np.tanh(number + shift) * half - offset)
            vectors[row, axis] = level / (count // 2)
            slopes[row, axis] = half / np.cosh(number + shift) ** 2 / (count // 2)
            codes[row] += (level + count // 2) * place
            place *= count
    return codes, vectors, slopes


@pytest.mark.parametrize("levels", [(3, 4, 5, 2), (8, 8, 8), (7, 5), (2,)])
def test_fsq_equals_the_equations_in_numpy(levels):
    quantizer, latents = QUANTIZERS["fsq"](fsq_levels=levels), draw_latents(4, len(levels), 30) * 2
    vectors, (codes,), losses = quantizer(latents.requires_grad_())
    expected_codes, expected_vectors, slopes = numpy_fsq(flatten(latents).double().numpy(), levels)
    vectors.sum().backward()
    np.testing.assert_allclose(flatten(latents.grad).numpy(), slopes, rtol=1e-4, atol=1e-6)
    assert np.array_equal(codes.flatten().numpy(), expected_codes)
    np.testing.assert_allclose(flatten(vectors).numpy(), expected_vectors, rtol=1e-6)
    assert losses.terms == {} and quantizer.num_embeddings == math.prod(levels)


def test_every_code_of_fsq_can_be_reached_and_no_other():
    quantizer = QUANTIZERS["fsq"](fsq_levels=(5, 4, 2))
    entries = quantizer.entries(0)
    assert len(entries.unique(dim=0)) == 40 and entries.abs().max() == 1
    latents = torch.cat([draw_latents(1, 3, 4000) * 2, torch.full((1, 3, 1), 1e9), torch.full((1, 3, 1), -1e9)], 2)
    (codes,) = quantizer.encode(latents)
    assert torch.equal(codes.unique(), torch.arange(40)) and codes[0, -2:].tolist() == [39, 0]


@pytest.mark.parametrize("levels", [(8, 8, 8, 6, 5), (1000, 7)])
def test_codes_of_fsq_are_whole_numbers_from_the_start(levels):
    quantizer = QUANTIZERS["fsq"](fsq_levels=levels, num_factors=1).bfloat16()
    latents = draw_latents(2, len(levels), 500)
    expected, _, _ = numpy_fsq(flatten(latents.bfloat16()).double().numpy(), levels)
    with torch.autocast("cpu", torch.bfloat16):
        (codes,) = quantizer.encode(latents.bfloat16())
    assert (codes.flatten().numpy() == expected).mean() > 0.995  # but for rounding of float32 at the edges


def test_latents_of_zero_become_vectors_of_zero_but_where_there_are_two_levels():
    vectors = QUANTIZERS["fsq"](fsq_levels=(3, 4, 8, 5))(torch.zeros(1, 4, 1)).vectors
    assert not vectors.any()
    (codes,) = QUANTIZERS["fsq"](fsq_levels=(2,)).encode(torch.tensor([[[-0.1, 0.1]]]))
    assert codes.tolist() == [[0, 1]]


def test_fsq_of_many_codes_lists_none_of_them():
    quantizer = QUANTIZERS["fsq"](fsq_levels=(8,) * 7, num_factors=1)
    assert quantizer.entries(0) is None and sum(buffer.numel() for buffer in quantizer.buffers()) < 100
