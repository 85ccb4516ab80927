"""Quantizers with a codebook: the nearest entry, k-means, revival, anchors.

Shapes: D embedding_dim, K num_embeddings.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from small_quantizers import (
    CLUSTERED,
    CODEBOOKS,
    SEARCHING,
    build,
    draw_latents,
    flatten,
    is_row_of,
    measure_gaps,
    moment,
    train_step,
)

from codegrid.stage1_vqvae.quantizers.clustered import ANCHORS
from codegrid.stage1_vqvae.quantizers.nearest import TILES, Tile, nearest_codes

every_codebook = pytest.mark.parametrize("name", SEARCHING)
every_stored_codebook = pytest.mark.parametrize("name", CODEBOOKS)
every_clustered = pytest.mark.parametrize("name", CLUSTERED)
every_distance = pytest.mark.parametrize("distance", ["euclidean", "cosine"])


@every_codebook
@every_distance
def test_each_code_is_the_nearest_entry_and_the_vectors_are_the_stored_entries(name, distance):
    quantizer, latents = build(name, distance=distance), draw_latents(2, 4, 3, 5)
    codebook = quantizer.codebook.detach().clone()
    gaps = measure_gaps(flatten(latents), codebook, distance)
    vectors, (codes,), _ = train_step(quantizer, latents)
    assert torch.equal(codes.flatten(), gaps.argmin(1))
    assert torch.equal(flatten(vectors), codebook[gaps.argmin(1)])


@pytest.mark.parametrize("tile", [Tile(1, 1), Tile(50, 7), Tile(10**9, 22), Tile(10**9, 10**9)])
@pytest.mark.parametrize("num_embeddings", [1, 23, 48])
@every_distance
def test_the_search_in_tiles_equals_the_search_at_once(monkeypatch, tile, num_embeddings, distance):
    latents, codebook = draw_latents(53, 6).double(), draw_latents(num_embeddings, 6, seed=2).double()
    monkeypatch.setitem(TILES, "cpu", tile)
    assert torch.equal(nearest_codes(latents, codebook, distance), measure_gaps(latents, codebook, distance).argmin(1))


def test_codes_are_right_where_all_latents_lie_far_from_the_origin():
    latents, codebook = 100 + 0.1 * draw_latents(2000, 64), 100 + 0.1 * draw_latents(512, 64, seed=2)
    exact = measure_gaps(latents.double(), codebook.double(), "euclidean").argmin(1)
    assert (nearest_codes(latents, codebook) == exact).float().mean() > 0.998


@every_codebook
def test_a_model_in_half_precision_chooses_the_codes_of_float32(name):
    quantizer, latents = build(name).bfloat16().eval(), draw_latents(64, 4, 40).bfloat16()
    exact = measure_gaps(flatten(latents).double(), quantizer.codebook.detach().double(), "euclidean").argmin(1)
    assert torch.equal(quantizer.encode(latents)[0].flatten(), exact)


@every_codebook
def test_commitment_is_beta_times_the_mean_squared_distance(name):
    latents = draw_latents(2, 4, 3, 5).requires_grad_()
    vectors, _, losses = build(name, commitment_cost=0.5)(latents)
    gradient = torch.autograd.grad(losses.total, latents)[0]
    torch.testing.assert_close(gradient, 0.5 * 2 * (latents - vectors).detach() / latents.numel())


@every_stored_codebook
def test_a_codebook_far_from_the_latents_comes_into_use(name):
    quantizer, latents = build(name, decay=0.9), draw_latents(8, 4, 40)
    quantizer.codebook.data += 100
    for step in range(100):  # a clustered codebook trusts an entry that was hit once for so long
        codes = train_step(quantizer, latents, step=step).codes[0]
    assert len(codes.unique()) == 8


@every_codebook
def test_an_entry_that_was_hit_is_not_moved_however_rarely_that_happens(name):
    quantizer = build(name, revival_threshold=0.9)
    entries = quantizer.codebook.detach().clone()
    quantizer.running_hits.fill_(1e-3)
    train_step(quantizer, rearrange(entries[[3] + [0] * 50], "n d -> n d 1"))  # once in 51 latents
    torch.testing.assert_close(quantizer.codebook.detach()[[0, 3]], entries[[0, 3]])


@pytest.mark.parametrize("name", ["ema", "gradient"])
def test_with_few_latents_a_step_a_codebook_is_revived_from_the_start(name):
    quantizer = build(name, num_embeddings=64, revival_threshold=0.3)
    for step in range(4):
        latents = draw_latents(8, 4, 1, seed=step) + 20  # far from every entry: at first all choose the same one
        train_step(quantizer, latents, step=step)
    (codes,) = quantizer.encode(latents)
    assert len(codes.unique()) > 2


@every_stored_codebook
def test_the_seed_of_the_user_and_the_step_choose_the_rows_that_dead_entries_move_to(name):
    def revive(seed, step, *purpose):
        quantizer = build(name, revival_threshold=0.9)
        quantizer.codebook.data += 100
        quantizer.running_hits.zero_()
        quantizer(draw_latents(8, 4, 40), moment(step))
        quantizer.after_step(step, seed, *purpose)
        return quantizer.codebook.detach()

    assert torch.equal(revive(5, 7), revive(5, 7))
    others = [revive(6, 7), revive(5, 8), revive(5, 7, "grid", 0), revive(5, 7, "grid", 1)]
    for number, other in enumerate(others):
        assert not any(torch.equal(other, each) for each in [revive(5, 7), *others[:number]])


@every_codebook
@every_distance
def test_the_first_steps_can_set_the_codebook_by_kmeans(name, distance):
    quantizer, latents = build(name, distance=distance, kmeans_steps=4), draw_latents(4, 4, 40)
    for step in range(4):
        train_step(quantizer, latents, step=step)
    members = F.one_hot(quantizer.encode(latents)[0].flatten(), 8).float()
    means = members.T @ flatten(latents) / members.sum(0)[:, None]
    torch.testing.assert_close(quantizer.codebook.detach(), means)  # Lloyd's fixed point
    assert torch.equal(quantizer.running_hits, members.sum(0))
    train_step(quantizer, latents + 1, step=4)  # from here on it is learnt as usual
    assert not torch.equal(quantizer.running_hits, members.sum(0))
    assert (quantizer.codebook.detach() - means).abs().max() < 0.5


@every_codebook
def test_kmeans_of_fewer_latents_than_entries_leaves_each_entry_at_a_latent(name):
    quantizer, latents = build(name, kmeans_steps=2), draw_latents(1, 4, 5)
    for step in range(2):
        train_step(quantizer, latents, step=step)
    assert is_row_of(quantizer.codebook.detach(), flatten(latents)).all()


@every_clustered
@pytest.mark.parametrize("anchors", ANCHORS)
def test_unused_entries_of_a_clustered_codebook_become_latents(name, anchors):
    quantizer, latents = build(name, anchors=anchors, revival_threshold=0.0), draw_latents(8, 4, 40)
    quantizer.codebook.data[5:] = 1e3
    train_step(quantizer, latents)
    moved = quantizer.codebook.detach()[5:]
    share = math.exp(-1e-3)  # a_k of what was never used: a thousandth of the old entry is left
    anchor = (moved - 1e3 * (1 - share)) / share
    assert (anchor[:, None] - flatten(latents)).norm(dim=2).amin(1).max() < 1e-2


@every_clustered
def test_anchors_can_be_set_once(name):
    quantizer = build(name, anchor_once=True, revival_threshold=0.0)
    quantizer.codebook.data[2] = 1e3
    train_step(quantizer, draw_latents(8, 4, 40), step=0)
    assert (quantizer.codebook[2].abs() < 10).all()
    quantizer.codebook.data[2] = 1e3
    for step in range(1, 6):
        train_step(quantizer, draw_latents(8, 4, 40), step=step)
    assert (quantizer.codebook[2] == 1e3).all()


@every_distance
def test_closest_anchors_are_the_closest_latents(distance):
    latents, codebook = draw_latents(50, 4), draw_latents(8, 4, seed=2)
    moved = torch.tensor([1, 4, 7])
    anchors = ANCHORS["closest"](8, 4, distance)(latents, codebook, moved, 0)
    assert torch.equal(anchors, latents[measure_gaps(codebook[moved], latents, distance).argmin(1)])


@every_distance
def test_probabilistic_anchors_are_drawn_with_the_softmax_of_the_distances(distance):
    latents, codebook = draw_latents(6, 4) / 2, draw_latents(1, 4, seed=2).repeat(20_000, 1) / 4
    anchors = ANCHORS["probabilistic"](8, 4, distance)(latents, codebook, torch.arange(20_000), 3)
    shares = (anchors[:, None] == latents[None]).all(2).double().mean(0)
    gaps = measure_gaps(codebook[:1], latents, distance)[0].double()
    expected = (-gaps.square() if distance == "euclidean" else -gaps).softmax(0)
    assert expected.min() > 0.005
    torch.testing.assert_close(shares, expected, atol=0.015, rtol=0)


def test_random_anchors_come_from_a_pool_of_the_last_batches():
    anchors, everyone = ANCHORS["random"](200, 4, "euclidean"), torch.arange(200)
    old, new = draw_latents(30, 4), draw_latents(30, 4, seed=2)
    assert is_row_of(anchors(old, None, everyone, 0, 0), old).all()
    pool = anchors(new, None, everyone, 0, 1)
    assert 60 < is_row_of(pool, new).sum() < 140
    assert (is_row_of(pool, new) | is_row_of(pool, old)).all()


def test_places_and_rows_of_random_anchors_have_nothing_to_do_with_each_other():
    anchors = ANCHORS["random"](4000, 4, "euclidean")
    anchors.running_pool.fill_(-1)
    latents = torch.arange(100.0).repeat(4, 1).T
    pool = anchors(latents, None, torch.arange(4000), 0, 1)[:, 0]
    assert abs(pool[pool >= 0].mean() - 49.5) < 3  # drawn from equal generators, only the lower half is placed
