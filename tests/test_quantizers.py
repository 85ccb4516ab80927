"""Every quantizer, by name: what must hold for each of them.

Shapes: b batch, D embedding_dim, K codebook entries.
"""

import copy

import numpy as np
import pytest
import torch

from stage1_vqvae.quantizers import QUANTIZERS, EMAQuantizer
from stage1_vqvae.quantizers.nearest import StraightThrough, nearest_codes

every_quantizer = pytest.mark.parametrize("name", QUANTIZERS)
every_mode = pytest.mark.parametrize("training", [True, False])


def build(name, **options):
    """K 8, D 4, with entries that lie apart."""
    torch.manual_seed(0)
    quantizer = QUANTIZERS[name](num_embeddings=8, embedding_dim=4, **options)
    quantizer.codebook.data.copy_(torch.randn(8, 4) * 2)
    return quantizer


def draw_latents(*shape, seed=1):
    """Latents that need a gradient."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@every_quantizer
@pytest.mark.parametrize("sites", [(6,), (3, 5), (2, 3, 4)])
def test_latents_may_have_one_to_three_site_axes(name, sites):
    quantizer = QUANTIZERS[name](num_embeddings=8, embedding_dim=4).eval()
    vectors, codes, loss = quantizer(draw_latents(2, 4, *sites))
    assert vectors.shape == (2, 4, *sites) and codes.shape == (2, *sites) and loss.shape == ()
    assert codes.dtype == torch.int64
    assert torch.equal(quantizer.look_up(codes), vectors)


@every_quantizer
def test_each_code_is_the_nearest_entry(name):
    quantizer, latents = build(name), draw_latents(2, 4, 3, 5)
    distances = (latents[:, None] - quantizer.codebook[None, :, :, None, None]).square().sum(2)
    assert torch.equal(quantizer.encode(latents), distances.argmin(1))


@every_quantizer
def test_without_commitment_cost_the_loss_gives_the_encoder_no_gradient(name):
    latents = draw_latents(2, 4, 3, 5)
    loss = build(name, commitment_cost=0.0)(latents).loss
    gradient = torch.autograd.grad(loss, latents)[0] if loss.requires_grad else None
    assert gradient is None or not gradient.any()


@every_quantizer
def test_commitment_is_beta_times_the_mean_squared_distance(name):
    latents = draw_latents(2, 4, 3, 5)
    vectors, _, loss = build(name, commitment_cost=0.5).eval()(latents)
    gradient = torch.autograd.grad(loss, latents)[0]
    torch.testing.assert_close(gradient, 0.5 * 2 * (latents - vectors).detach() / latents.numel())


@every_quantizer
@every_mode
def test_the_gradient_of_the_vectors_reaches_the_latents_unchanged(name, training):
    quantizer, latents = build(name).train(training), draw_latents(2, 4, 3, 5)
    vectors = quantizer(latents).vectors
    weights = torch.randn_like(vectors)
    assert torch.equal(torch.autograd.grad((vectors * weights).sum(), latents)[0], weights)


@every_quantizer
@every_mode
def test_the_reconstruction_gives_the_codebook_no_gradient(name, training):
    quantizer = build(name).train(training)
    quantizer(draw_latents(2, 4, 3, 5)).vectors.square().sum().backward()
    assert quantizer.codebook.grad is None


def test_the_usual_straight_through_formula_would_not_be_exact():
    latents, vectors = draw_latents(1000), torch.randn(1000)
    assert torch.equal(StraightThrough.apply(latents, vectors), vectors)
    assert not torch.equal(latents + (vectors - latents).detach(), vectors)


@every_quantizer
def test_training_decodes_with_the_codebook_that_was_searched(name):
    quantizer, latents = build(name).train(), draw_latents(2, 4, 3, 5)
    before = copy.deepcopy(quantizer)
    vectors, codes, _ = quantizer(latents)
    assert torch.equal(vectors, before.look_up(codes))


@every_quantizer
def test_a_thousand_batches_on_one_entry_leave_all_others_where_they_were(name):
    quantizer = build(name, revival_threshold=0.0).train()
    before = quantizer.codebook.detach().clone()
    optimizer = torch.optim.SGD([*quantizer.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    for _ in range(1000):
        loss = quantizer(before[3].view(1, 4, 1) + 0.1).loss
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    others = torch.arange(8) != 3
    assert torch.equal(quantizer.codebook[others], before[others])
    torch.testing.assert_close(quantizer.codebook[3].detach(), before[3] + 0.1, atol=0.02, rtol=0)


def test_three_ema_steps_equal_the_equations_in_numpy():
    quantizer = build("ema", decay=0.9, revival_threshold=0.0).train()
    entries, counts = quantizer.codebook.double().numpy().copy(), np.ones(8)
    for step in range(3):
        latents = draw_latents(5, 4, 7, seed=step).detach()
        flat = latents.permute(0, 2, 1).reshape(-1, 4).double().numpy()
        codes = np.square(flat[:, None] - entries[None]).sum(2).argmin(1)
        quantizer(latents)
        for k in range(8):
            hits = flat[codes == k]
            counts[k] = 0.9 * counts[k] + 0.1 * len(hits)
            if len(hits):
                entries[k] += 0.1 * (hits.sum(0) - len(hits) * entries[k]) / counts[k]
        np.testing.assert_allclose(quantizer.codebook.numpy(), entries, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(quantizer.running_hits.numpy(), counts, rtol=1e-5)


@every_quantizer
def test_a_dead_entry_moves_to_a_latent_and_survives_a_batch_without_a_hit(name):
    quantizer, latents = build(name, revival_threshold=0.5).train(), draw_latents(8, 4, 40)
    quantizer.codebook.data[2] = 1e3
    for _ in range(200):  # its running hits fade
        quantizer(latents)
        if quantizer.codebook[2].abs().max() < 1e3:
            break
    moved = quantizer.codebook[2].detach().clone()
    assert (latents.permute(0, 2, 1).reshape(-1, 4) == moved).all(1).any()
    quantizer(torch.full((8, 4, 40), 50.0))  # far from it: no hit
    assert torch.equal(quantizer.codebook[2].detach(), moved)


@every_quantizer
def test_encode_changes_nothing_in_train_mode(name):
    quantizer = build(name).train()
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.encode(draw_latents(2, 4, 3, 5))
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


@every_quantizer
def test_autocast_changes_no_code_and_leaves_the_state_in_float32(name):
    quantizer, latents = build(name).train(), draw_latents(64, 4, 16, 16)
    plain = quantizer.encode(latents)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(latents), plain)
        result = quantizer(latents)
    assert torch.equal(result.codes, plain)
    assert result.vectors.dtype == torch.float32
    assert all(value.dtype in (torch.float32, torch.int64) for value in quantizer.state_dict().values())


@every_quantizer
def test_save_load_and_a_step_equal_an_uninterrupted_step(name):
    quantizer, latents = build(name, revival_threshold=0.9).train(), draw_latents(2, 4, 3, 5)
    for _ in range(5):
        quantizer(latents)
    quantizer.codebook.data[7], quantizer.running_hits[7] = 1e3, 0.0  # about to be revived at random
    loaded = QUANTIZERS[name](num_embeddings=8, embedding_dim=4, revival_threshold=0.9).train()
    loaded.load_state_dict(copy.deepcopy(quantizer.state_dict()))
    quantizer(latents)
    loaded(latents)
    assert all(torch.equal(value, quantizer.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_the_ema_codebook_is_unknown_to_the_optimizer():
    quantizer = build("ema")
    assert not list(quantizer.parameters())
    assert "codebook" in quantizer.state_dict()


@pytest.mark.parametrize("at_once", [1, 50, 10**9])
def test_the_search_in_pieces_equals_the_search_at_once(monkeypatch, at_once):
    monkeypatch.setattr("stage1_vqvae.quantizers.nearest.DISTANCES_AT_ONCE", at_once)
    latents, codebook = torch.randn(101, 6).double(), torch.randn(23, 6).double()
    assert torch.equal(nearest_codes(latents, codebook), torch.cdist(latents, codebook).argmin(1))


@every_quantizer
def test_hits_and_sums_equal_those_of_one_hot_codes(name, monkeypatch):
    quantizer, latents = build(name).train(), draw_latents(2, 4, 3, 5)
    seen = {}
    monkeypatch.setattr(quantizer, "_update_codebook", lambda hits, sums: seen.update(hits=hits, sums=sums))
    codes = quantizer(latents).codes
    one_hot = torch.nn.functional.one_hot(codes.flatten(), 8).float()
    assert torch.equal(seen["hits"], one_hot.sum(0))
    torch.testing.assert_close(seen["sums"], one_hot.T @ latents.permute(0, 2, 3, 1).reshape(-1, 4).detach())


def test_a_codebook_far_from_the_latents_comes_into_use():
    quantizer = EMAQuantizer(num_embeddings=32, embedding_dim=4).train()
    quantizer.codebook += 100
    latents = draw_latents(16, 4, 8, 8).detach()
    for _ in range(60):
        codes = quantizer(latents).codes
    assert len(codes.unique()) >= 28
