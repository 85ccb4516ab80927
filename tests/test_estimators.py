"""Estimators of the gradient: the vectors stay bit for bit, and the gradient is that of the equation.

Shapes: b batch, D embedding_dim, *sites.
"""

import numpy as np
import pytest
import torch
from small_quantizers import CASES, build, draw_latents, flatten, moment

from codegrid.stage1_vqvae.quantizers.estimators import ESTIMATORS

WITH_ESTIMATOR = [case for case in CASES if "estimator" in build(case).config]


def turn_back(latents, vectors, gradients):
    """(‖q‖ / ‖e‖) Rᵀ g of each row (n, D), by the matrix R, of which (‖q‖ / ‖e‖) R e = q is asked."""
    result = []
    for e, q, g in zip(latents, vectors, gradients, strict=True):
        u, v = e / np.linalg.norm(e), q / np.linalg.norm(q)
        w = (u + v) / np.linalg.norm(u + v)
        matrix = (np.eye(len(e)) - 2 * np.outer(w, w) + 2 * np.outer(v, u)) * np.linalg.norm(q) / np.linalg.norm(e)
        np.testing.assert_allclose(matrix @ e, q, atol=1e-12)
        result.append(matrix.T @ g)
    return np.array(result)


@pytest.mark.parametrize("case", WITH_ESTIMATOR)
def test_rotation_leaves_vectors_and_losses_as_they_are_and_turns_the_gradient(case):
    plain, turning = build(case), build(case, estimator="rotation")
    latents = draw_latents(2, 4, 3, 5).requires_grad_()
    expected, found = plain(latents, moment()), turning(latents, moment())
    assert torch.equal(found.vectors, expected.vectors) and found.losses.terms == expected.losses.terms
    assert found.vectors.stride() == expected.vectors.stride()
    weights = torch.randn_like(latents)
    gradients, straight = (
        torch.autograd.grad((each.vectors * weights).sum(), [latents, *book.parameters()], allow_unused=True)
        for each, book in ((found, turning), (expected, plain))
    )
    rows = (flatten(each).double().numpy() for each in (latents, found.vectors, weights))
    np.testing.assert_allclose(flatten(gradients[0]), turn_back(*rows), rtol=1e-5, atol=1e-5)
    others = zip(gradients[1:], straight[1:], strict=True)
    assert all(ours is theirs is None or torch.equal(ours, theirs) for ours, theirs in others)


@pytest.mark.parametrize("sites", [(7,), (3, 5), (2, 3, 4)])
def test_the_gradient_of_rotation_is_that_of_its_equation_to_a_millionth(sites):
    latents, vectors, weights = (draw_latents(2, 6, *sites, seed=seed).double() for seed in range(3))
    latents.requires_grad_()
    ESTIMATORS["rotation"](latents, vectors).backward(weights)
    rows = (flatten(each).numpy() for each in (latents, vectors, weights))
    np.testing.assert_allclose(flatten(latents.grad), turn_back(*rows), rtol=1e-10)
    ratio = vectors.norm(dim=1) / latents.detach().norm(dim=1)
    torch.testing.assert_close(latents.grad.norm(dim=1), ratio * weights.norm(dim=1))


def test_rotation_passes_the_gradient_straight_where_there_is_no_rotation():
    vectors, weights = draw_latents(3, 6, 5), draw_latents(3, 6, 5, seed=2)
    latents = torch.stack([torch.zeros(6, 5), -3 * vectors[1], 1e-30 * vectors[2]]).requires_grad_()
    ESTIMATORS["rotation"](latents, vectors).backward(weights)
    assert torch.equal(latents.grad, weights)
    latents.grad = None
    ESTIMATORS["rotation"](latents, torch.zeros_like(vectors)).backward(weights)
    assert torch.equal(latents.grad[1], torch.zeros(6, 5))  # shrunk to nothing, and not 0 / 0


def test_rotation_in_half_precision_is_that_of_float32():
    latents, vectors, weights = (draw_latents(2, 6, 5, seed=seed).bfloat16() for seed in range(3))
    exact, half = latents.float().requires_grad_(), latents.float().requires_grad_()
    ESTIMATORS["rotation"](exact, vectors.float()).backward(weights.float())
    ESTIMATORS["rotation"](half, vectors).backward(weights)
    torch.testing.assert_close(half.grad, exact.grad)
