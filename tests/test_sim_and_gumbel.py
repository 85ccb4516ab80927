"""SimVQ and the Gumbel-softmax quantizer, against plain NumPy.

Shapes: b batch, D embedding_dim, n sites, K num_embeddings.
"""

import numpy as np
import pytest
import torch
from small_quantizers import LargestTensor, build, draw_latents, flatten, measure_gaps, train_step

from codegrid.codes import Moment
from codegrid.noise import Noise
from codegrid.stage1_vqvae.quantizers import QUANTIZERS
from codegrid.stage1_vqvae.quantizers.nearest import TILES, Tile

# SimVQ.


def sim_with_a_learnt_matrix(**options):
    """A small one whose matrix is no longer the identity."""
    quantizer = build("sim", **options)
    quantizer.basis.data += torch.randn(4, 4) / 2
    return quantizer


def test_sim_equals_the_equations_in_numpy_and_moves_its_matrix_alone():
    quantizer = sim_with_a_learnt_matrix(revival_threshold=0.0)
    coefficients, basis = (each.detach().double().numpy() for each in (quantizer.coefficients, quantizer.basis))
    for step in range(3):
        latents = draw_latents(5, 4, 2, 3, seed=step)
        rows, entries = flatten(latents).double().numpy(), coefficients @ basis
        codes = np.square(rows[:, None] - entries[None]).sum(2).argmin(1)
        vectors, (found,), losses = train_step(quantizer, latents, step=step)
        assert np.array_equal(found.flatten(), codes)
        np.testing.assert_allclose(flatten(vectors), entries[codes], rtol=1e-5, atol=1e-5)
        error = np.square(rows - entries[codes]).mean()
        assert losses.terms["codebook_loss"].item() == pytest.approx(error, rel=1e-5)
        assert losses.terms["commitment_loss"].item() == pytest.approx(0.25 * error, rel=1e-5)
        losses.total.backward()
        with torch.no_grad():
            quantizer.basis -= 0.1 * quantizer.basis.grad
            quantizer.basis.grad = None
        basis = basis - 0.1 * coefficients[codes].T @ (2 * (entries[codes] - rows) / rows.size)
        np.testing.assert_allclose(quantizer.basis.detach(), basis, rtol=1e-5, atol=1e-6)
    assert np.array_equal(quantizer.coefficients, coefficients)
    assert [name for name, _ in quantizer.named_parameters()] == ["basis"]


def test_codes_of_sim_are_looked_up_through_its_matrix():
    quantizer, codes = sim_with_a_learnt_matrix(), torch.randint(8, (2, 3, 5))
    expected = quantizer.entries(0)[codes].movedim(-1, 1)
    assert torch.equal(quantizer.look_up((codes,)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.look_up((codes,)), expected)
    assert not torch.equal(quantizer.entries(0), quantizer.coefficients)


def test_dead_entries_of_sim_move_to_latents_through_its_matrix_and_the_others_stay():
    quantizer, latents = sim_with_a_learnt_matrix(revival_threshold=0.01), draw_latents(8, 4, 40)
    quantizer.coefficients[5:] = 1e3
    quantizer.running_hits[5:] = 0
    before = quantizer.coefficients.clone()
    train_step(quantizer, latents)
    assert measure_gaps(quantizer.entries(0)[5:], flatten(latents), "euclidean").amin(1).max() < 1e-4
    assert torch.equal(quantizer.coefficients[:5], before[:5])
    resting = sim_with_a_learnt_matrix(revival_threshold=0.0)
    resting.coefficients[5:] = 1e3
    resting.running_hits[5:] = 0
    before = resting.coefficients.clone()
    train_step(resting, latents)
    assert torch.equal(resting.coefficients, before)


def test_kmeans_sets_the_entries_of_sim_through_its_matrix():
    ours, plain = sim_with_a_learnt_matrix(kmeans_steps=1), build("ema", kmeans_steps=1)
    for quantizer in (ours, plain):
        train_step(quantizer, draw_latents(4, 4, 40), step=0)
    torch.testing.assert_close(ours.entries(0), plain.entries(0), atol=1e-4, rtol=1e-4)


# Gumbel-softmax.


def gumbel(num_embeddings=8, **options):
    """A small one whose logits are no longer products with its entries."""
    torch.manual_seed(0)
    quantizer = QUANTIZERS["gumbel"](num_embeddings=num_embeddings, embedding_dim=4, **options).train()
    for parameter in quantizer.to_logits.parameters():
        parameter.data.normal_()
    return quantizer


def moment(step, steps=1000, first=0, count=1):
    return Moment(step, steps, Noise(0, first, count))


def logits_of(quantizer, latents):
    weight, bias = (each.detach().double().numpy() for each in quantizer.to_logits.parameters())
    return np.moveaxis(latents.detach().flatten(2).double().numpy(), 1, 2) @ weight.T + bias  # (b, n, K)


def numpy_gumbel(quantizer, latents, when, temperature):
    """Mixtures (b, n, D), the mean KL, and the codes (b, n) of latents (b, D, *sites)."""
    logits = logits_of(quantizer, latents)
    p = np.exp(logits - logits.max(2, keepdims=True))
    p /= p.sum(2, keepdims=True)
    noises = [when.noise.of("site", site).uniforms("gumbel", p.shape[2]) for site in range(p.shape[1])]
    noise = -np.log(-np.log1p(-torch.stack(noises, 1).numpy()))
    y = np.exp((logits + noise) / temperature)
    y /= y.sum(2, keepdims=True)
    return y @ quantizer.codebook.detach().double().numpy(), (p * np.log(8 * p)).sum(2).mean(), logits.argmax(2)


@pytest.mark.parametrize(
    "step,temperature,weight", [(0, 1, 0), (250, 0.53125, 1), (500, 1 / 16, 1), (25, 0.99423, 0.5)]
)
@pytest.mark.parametrize("sites", [(6,), (2, 3), (1, 2, 3)])
def test_gumbel_equals_the_equations_in_numpy(sites, step, temperature, weight):
    quantizer, latents, when = gumbel(kl_weight=0.1), draw_latents(3, 4, *sites), moment(step, count=3)
    expected, kl, codes = numpy_gumbel(quantizer, latents, when, temperature)
    vectors, (found,), losses = quantizer(latents, when)
    np.testing.assert_allclose(vectors.detach().flatten(2).movedim(1, 2), expected, rtol=1e-3, atol=1e-4)
    assert losses.terms["kl_loss"].item() == pytest.approx(0.1 * weight * kl, rel=1e-4)
    assert losses.figures["kl"].item() == pytest.approx(kl, rel=1e-5)
    assert losses.figures["temperature"].item() == pytest.approx(temperature, rel=1e-4)
    assert np.array_equal(found.flatten(1), codes)


@pytest.mark.parametrize("hard", [False, True])
def test_gradients_of_gumbel_are_those_of_its_equation_however_few_sites_are_worked_on_at_once(hard, monkeypatch):
    whole, latents, when = gumbel(hard_samples=hard).double(), draw_latents(3, 4, 5).double(), moment(400, count=3)
    weights = draw_latents(3, 4, 5, seed=2).double()
    ours, plain = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    monkeypatch.setitem(TILES, "cpu", Tile(3 * 8 * 2, 8))  # two sites
    vectors, _, losses = whole(ours, when)
    ((vectors * weights).sum() + losses.total).backward()
    gradients = [ours.grad, *(parameter.grad for parameter in whole.parameters())]

    for parameter in whole.parameters():
        parameter.grad = None
    logits = whole.to_logits(plain.movedim(1, -1))
    noise = torch.stack([when.noise.of("site", site).uniforms("gumbel", 8) for site in range(5)], 1)
    y = ((logits - torch.log(-torch.log1p(-noise))) / whole.temperature(when)).softmax(2)
    if hard:
        y = y + (torch.nn.functional.one_hot(y.argmax(2), 8) - y).detach()
    p = logits.softmax(2)
    loss = 5e-3 * (p * (8 * p).log()).sum(2).mean()  # its weight is whole from 5 % of the steps on
    ((y @ whole.codebook).movedim(2, 1) * weights).sum().add(loss).backward()
    torch.testing.assert_close(vectors, (y @ whole.codebook).movedim(2, 1))
    for found, expected in zip(gradients, [plain.grad, *(each.grad for each in whole.parameters())], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_hard_samples_of_gumbel_are_single_entries():
    quantizer, latents = gumbel(hard_samples=True), draw_latents(3, 4, 50)
    vectors, (codes,), _ = quantizer(latents, moment(0, count=3))
    gaps, drawn = measure_gaps(flatten(vectors), quantizer.entries(0), "euclidean").min(1)
    assert gaps.max() < 1e-5
    assert 0.2 < (drawn == codes.flatten()).float().mean() < 0.9  # drawn, and not the likeliest


def test_gumbel_tells_codes_without_noise_and_the_temperature_follows_from_the_share_of_the_run():
    quantizer, latents = gumbel(), draw_latents(3, 4, 50)
    (expected,) = quantizer.encode(latents)
    for step in (0, 999):
        first, second = (quantizer(latents, Moment(step, 1000, Noise(seed, count=3))) for seed in range(2))
        assert torch.equal(first.codes[0], expected) and torch.equal(second.codes[0], expected)
        assert not torch.equal(first.vectors, second.vectors)
    assert np.array_equal(expected, logits_of(quantizer, latents).argmax(2))
    course = [quantizer.temperature(moment(step, 100)) for step in range(100)]
    assert course[0] == 1 and course == sorted(course, reverse=True) and set(course[50:]) == {1 / 16}
    assert quantizer.temperature(moment(300, 1000)) == quantizer.temperature(moment(30, 100))
    assert quantizer.temperature(None) == 1 / 16


def test_a_sample_of_gumbel_is_drawn_alike_in_any_piece_of_a_batch():
    latents = draw_latents(6, 4, 5)
    together, apart = gumbel(), gumbel()
    whole = together(latents, moment(300, count=6))
    (whole.vectors.square().mean() + whole.losses.total).backward()
    for first in (0, 2, 4):
        piece = apart(latents[first : first + 2], moment(300, first=first, count=2))
        torch.testing.assert_close(piece.vectors, whole.vectors[first : first + 2])
        ((piece.vectors.square().mean() + piece.losses.total) / 3).backward()
    for ours, theirs in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("shape", [(1, 4, 1), (3, 4, 5, 2)])
def test_kl_of_gumbel_is_0_where_all_logits_are_equal_and_log_k_where_one_is_certain(shape):
    quantizer, latents = gumbel(), draw_latents(*shape)
    quantizer.to_logits.weight.data.zero_()
    quantizer.to_logits.bias.data.fill_(7)
    assert abs(quantizer(latents).losses.figures["kl"]) < 1e-6
    quantizer.to_logits.bias.data[3] = 1e4
    torch.testing.assert_close(quantizer(latents).losses.figures["kl"], torch.tensor(8.0).log())


def test_gumbel_never_holds_all_sites_times_entries(monkeypatch):
    monkeypatch.setitem(TILES, "cpu", Tile(4096, 64))
    quantizer, latents = gumbel(num_embeddings=256), draw_latents(2, 4, 512).requires_grad_()
    with LargestTensor() as largest:
        vectors, _, losses = quantizer(latents, moment(10, count=2))
        (vectors.sum() + losses.total).backward()
    assert largest.numel <= 4096
