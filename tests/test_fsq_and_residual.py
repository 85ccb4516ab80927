"""Finite scalar and residual quantization, against plain NumPy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_quantizers import SMALL, build, draw_latents, flatten, is_row_of, train_step

from codegrid.stage1_vqvae.quantizers import QUANTIZERS

# Finite scalar quantization.


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


# Residual quantization.


def test_residual_codes_equal_the_equations_in_numpy_and_each_codebook_learns_from_its_residuals():
    quantizer = build("residual", decay=0.9, revival_threshold=0.0)
    books = [book.codebook.double().numpy().copy() for book in quantizer.books]
    counts = np.ones((3, 8))
    for step in range(3):
        latents = draw_latents(5, 4, 2, 3, seed=step)
        rest, total = flatten(latents).double().numpy(), 0
        expected, commitment = [], 0
        for depth, book in enumerate(books):
            codes = np.square(rest[:, None] - book[None]).sum(2).argmin(1)
            vectors = book[codes]
            expected.append(codes)
            commitment += 0.25 * np.square(rest - vectors).mean() / 3
            for k in range(8):
                hits = rest[codes == k]
                counts[depth, k] = 0.9 * counts[depth, k] + 0.1 * len(hits)
                book[k] += 0.1 * (hits - book[k]).sum(0) / counts[depth, k]
            rest, total = rest - vectors, total + vectors
        vectors, codes, losses = train_step(quantizer, latents, step=step)
        for ours, theirs in zip(codes, expected, strict=True):
            assert np.array_equal(ours.flatten().numpy(), theirs)
        np.testing.assert_allclose(flatten(vectors).numpy(), total, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(losses.terms["commitment_loss"].item(), commitment, rtol=1e-5)
        for book, theirs in zip(quantizer.books, books, strict=True):
            np.testing.assert_allclose(book.codebook.numpy(), theirs, rtol=1e-5, atol=1e-5)


def test_each_codebook_by_gradient_learns_as_it_would_alone():
    quantizer, latents = build("residual of gradient"), draw_latents(5, 4, 6)
    quantizer(latents).losses.total.backward()
    rest = latents
    for book in quantizer.books:
        alone = QUANTIZERS["gradient"](**SMALL["gradient"])
        alone.load_state_dict(book.state_dict())
        result = alone(rest)
        result.losses.total.backward()
        torch.testing.assert_close(book.codebook.grad, alone.codebook.grad)
        rest = rest - result.vectors.detach()


def test_kmeans_of_finer_codebooks_starts_from_what_the_coarser_ones_leave_over():
    quantizer, latents = build("residual", kmeans_steps=1), draw_latents(4, 4, 40)
    train_step(quantizer, latents, step=0)
    rest = latents
    for book in quantizer.books:
        members = F.one_hot(book.encode(rest)[0].flatten(), 8).float()
        gaps = members.T @ flatten(rest) / members.sum(0).clamp_min(1)[:, None] - book.codebook
        assert gaps.abs().max() < 0.5  # ten iterations, near to the means of its own residuals
        rest = rest - book.look_up(book.encode(rest))
    assert rest.square().mean() < 0.15 * latents.square().mean()


@pytest.mark.parametrize("base", ["ema", "gradient"])
def test_dead_entries_of_each_depth_move_to_residuals_of_that_depth_and_not_to_the_same_rows(base):
    quantizer, latents = build("residual", codebook=base, revival_threshold=0.9), draw_latents(4, 4, 40)
    for book in quantizer.books:
        book.codebook.data[1:] += 100  # never chosen
        book.running_hits.zero_()
    rest, rests = latents, []
    for book in quantizer.books:
        rests.append(flatten(rest))
        rest = rest - book.look_up(book.encode(rest)).detach()
    train_step(quantizer, latents)
    chosen = []
    for book, rows in zip(quantizer.books, rests, strict=True):
        moved = book.codebook.detach()[1:]
        assert is_row_of(moved, rows).all()
        chosen.append([int((row == rows).all(1).nonzero()[0]) for row in moved])
    assert chosen[0] != chosen[1] and chosen[1] != chosen[2]
