"""What every quantizer does, by name, and what some of them do. Where quantizers go wrong is in test_traps.py.

Shapes: b batch, D embedding_dim, K codebook entries.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from codegrid.stage1_vqvae.quantizers import QUANTIZERS
from codegrid.stage1_vqvae.quantizers.anchors import ANCHORS
from codegrid.stage1_vqvae.quantizers.clustered import Clustered
from codegrid.stage1_vqvae.quantizers.nearest import TILES, Tile, find_nearest, nearest_codes

every_quantizer = pytest.mark.parametrize("name", QUANTIZERS)
every_distance = pytest.mark.parametrize("distance", ["euclidean", "cosine"])
every_clustered = pytest.mark.parametrize(
    "name", [name for name, kind in QUANTIZERS.items() if issubclass(kind, Clustered)]
)


def build(name, **options):
    """K 8, D 4, in train mode, with entries that lie apart."""
    torch.manual_seed(0)
    quantizer = QUANTIZERS[name](num_embeddings=8, embedding_dim=4, **options).train()
    quantizer.codebook.data.copy_(torch.randn(8, 4) * 2)
    return quantizer


def draw_latents(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flatten(latents):
    return rearrange(latents, "b d ... -> (b ...) d")


def measure_gaps(a, b, distance):
    """What orders the rows of b (m, D) around each row of a (n, D), the slow way: (n, m)."""
    if distance == "cosine":
        return 1 - F.cosine_similarity(a[:, None], b[None], dim=2)
    return torch.stack([(row - b).norm(dim=1) for row in a])


def is_row_of(vectors, rows):
    """For each of vectors (m, D) whether it is bitwise one of rows (n, D)."""
    return (vectors[:, None] == rows[None]).all(2).any(1)


@every_quantizer
@every_distance
@pytest.mark.parametrize("sites", [(6,), (3, 5), (2, 3, 4)])
def test_latents_may_have_one_to_three_site_axes(name, distance, sites):
    quantizer = build(name, distance=distance).eval()
    vectors, codes, loss = quantizer(draw_latents(2, 4, *sites))
    assert vectors.shape == (2, 4, *sites) and codes.shape == (2, *sites) and loss.shape == ()
    assert codes.dtype == torch.int64
    assert torch.equal(quantizer.look_up(codes), vectors)


@every_quantizer
@every_distance
def test_each_code_is_the_nearest_entry_and_the_vectors_are_the_stored_entries(name, distance):
    quantizer, latents = build(name, distance=distance), draw_latents(2, 4, 3, 5)
    codebook = quantizer.codebook.detach().clone()
    gaps = measure_gaps(flatten(latents), codebook, distance)
    vectors, codes, _ = quantizer(latents)
    assert torch.equal(codes.flatten(), gaps.argmin(1))
    assert torch.equal(flatten(vectors), codebook[gaps.argmin(1)])


@pytest.mark.parametrize("tile", [Tile(1, 1), Tile(50, 7), Tile(10**9, 22), Tile(10**9, 10**9)])
@every_distance
def test_the_search_in_tiles_equals_the_search_at_once(monkeypatch, tile, distance):
    latents, codebook = draw_latents(101, 6).double(), draw_latents(23, 6, seed=2).double()
    monkeypatch.setitem(TILES, "cpu", tile)
    assert torch.equal(nearest_codes(latents, codebook, distance), measure_gaps(latents, codebook, distance).argmin(1))


@pytest.mark.parametrize("tile", [Tile(50, 7), Tile(10**9, 10**9)])
@pytest.mark.parametrize("num_embeddings", [1, 3, 21, 32, 48])
@every_distance
def test_a_site_is_tied_where_the_second_entry_is_as_near_but_for_rounding(monkeypatch, tile, num_embeddings, distance):
    monkeypatch.setitem(TILES, "cpu", tile)
    latents, codebook = draw_latents(200, 6).double(), draw_latents(num_embeddings, 6, seed=2).double()
    if num_embeddings == 1:
        assert not find_nearest(latents, codebook, distance, mark_ties=True).tied.any()
        return
    codebook[-1] = codebook[0] + 1e-7  # a twin: whoever is near to one is near to both
    nearest_two = measure_gaps(latents, codebook, distance).topk(2, largest=False).indices
    expected = (nearest_two.sort().values == torch.tensor([0, num_embeddings - 1])).all(1)
    codes, tied = find_nearest(latents, codebook, distance, mark_ties=True)
    assert torch.equal(tied, expected) and expected.sum() > 0
    assert torch.equal(codes[~tied], nearest_two[~tied, 0])


def test_codes_are_right_where_all_latents_lie_far_from_the_origin():
    latents, codebook = 100 + 0.1 * draw_latents(2000, 64), 100 + 0.1 * draw_latents(512, 64, seed=2)
    exact = measure_gaps(latents.double(), codebook.double(), "euclidean").argmin(1)
    assert (nearest_codes(latents, codebook) == exact).float().mean() > 0.998


@every_quantizer
def test_a_model_in_half_precision_chooses_the_codes_of_float32(name):
    quantizer, latents = build(name).bfloat16().eval(), draw_latents(64, 4, 40).bfloat16()
    exact = measure_gaps(flatten(latents).double(), quantizer.codebook.detach().double(), "euclidean").argmin(1)
    assert torch.equal(quantizer.encode(latents).flatten(), exact)
    assert quantizer(latents).vectors.dtype == torch.bfloat16


@every_quantizer
def test_commitment_is_beta_times_the_mean_squared_distance(name):
    latents = draw_latents(2, 4, 3, 5).requires_grad_()
    vectors, _, loss = build(name, commitment_cost=0.5).eval()(latents)
    gradient = torch.autograd.grad(loss, latents)[0]
    torch.testing.assert_close(gradient, 0.5 * 2 * (latents - vectors).detach() / latents.numel())


@every_quantizer
def test_a_codebook_far_from_the_latents_comes_into_use(name):
    quantizer, latents = build(name), draw_latents(16, 4, 8, 8)
    quantizer.codebook.data += 100
    for _ in range(600):  # a clustered codebook trusts an entry that was hit once for so long
        codes = quantizer(latents).codes
    assert len(codes.unique()) == 8


@every_quantizer
def test_an_entry_that_was_hit_is_not_moved_however_rarely_that_happens(name):
    quantizer = build(name, revival_threshold=0.9)
    entries = quantizer.codebook.detach().clone()
    quantizer.running_hits.fill_(1e-3)
    quantizer(rearrange(entries[[3] + [0] * 50], "n d -> n d 1"))  # once in 51 latents
    torch.testing.assert_close(quantizer.codebook.detach()[[0, 3]], entries[[0, 3]])


@every_quantizer
@every_distance
def test_the_first_steps_can_set_the_codebook_by_kmeans(name, distance):
    quantizer, latents = build(name, distance=distance, kmeans_steps=4), draw_latents(4, 4, 40)
    for _ in range(4):
        quantizer(latents)
    members = F.one_hot(quantizer.encode(latents).flatten(), 8).float()
    means = members.T @ flatten(latents) / members.sum(0)[:, None]
    torch.testing.assert_close(quantizer.codebook.detach(), means)  # Lloyd's fixed point
    assert torch.equal(quantizer.running_hits, members.sum(0))
    quantizer(latents + 1)  # from here on it is learnt as usual
    assert not torch.equal(quantizer.running_hits, members.sum(0))
    assert (quantizer.codebook.detach() - means).abs().max() < 0.5


@every_quantizer
def test_kmeans_of_fewer_latents_than_entries_leaves_each_entry_at_a_latent(name):
    quantizer, latents = build(name, kmeans_steps=2), draw_latents(1, 4, 5)
    quantizer(latents)
    quantizer(latents)
    assert is_row_of(quantizer.codebook.detach(), flatten(latents)).all()


@every_clustered
@pytest.mark.parametrize("anchors", ANCHORS)
def test_unused_entries_of_a_clustered_codebook_become_latents(name, anchors):
    quantizer, latents = build(name, anchors=anchors, revival_threshold=0.0), draw_latents(8, 4, 40)
    quantizer.codebook.data[5:] = 1e3
    quantizer(latents)
    moved = quantizer.codebook.detach()[5:]
    share = math.exp(-1e-3)  # a_k of what was never used: a thousandth of the old entry is left
    anchor = (moved - 1e3 * (1 - share)) / share
    assert (anchor[:, None] - flatten(latents)).norm(dim=2).amin(1).max() < 1e-2


@every_clustered
def test_anchors_can_be_set_once(name):
    quantizer = build(name, anchor_once=True, revival_threshold=0.0)
    quantizer.codebook.data[2] = 1e3
    quantizer(draw_latents(8, 4, 40))
    assert (quantizer.codebook[2].abs() < 10).all()
    quantizer.codebook.data[2] = 1e3
    for _ in range(5):
        quantizer(draw_latents(8, 4, 40))
    assert (quantizer.codebook[2] == 1e3).all()


@every_distance
def test_closest_anchors_are_the_closest_latents(distance):
    latents, codebook = draw_latents(50, 4), draw_latents(8, 4, seed=2)
    moved = torch.tensor([1, 4, 7])
    anchors = ANCHORS["closest"](8, 4, distance)(latents, codebook, moved, step=0)
    assert torch.equal(anchors, latents[measure_gaps(codebook[moved], latents, distance).argmin(1)])


@every_distance
def test_probabilistic_anchors_are_drawn_with_the_softmax_of_the_distances(distance):
    latents, codebook = draw_latents(6, 4) / 2, draw_latents(1, 4, seed=2).repeat(20_000, 1) / 4
    anchors = ANCHORS["probabilistic"](8, 4, distance)(latents, codebook, torch.arange(20_000), step=3)
    shares = (anchors[:, None] == latents[None]).all(2).double().mean(0)
    gaps = measure_gaps(codebook[:1], latents, distance)[0].double()
    expected = (-gaps.square() if distance == "euclidean" else -gaps).softmax(0)
    assert expected.min() > 0.005
    torch.testing.assert_close(shares, expected, atol=0.015, rtol=0)


def test_random_anchors_come_from_a_pool_of_the_last_batches():
    anchors, everyone = ANCHORS["random"](200, 4, "euclidean"), torch.arange(200)
    old, new = draw_latents(30, 4), draw_latents(30, 4, seed=2)
    assert is_row_of(anchors(old, None, everyone, step=0), old).all()
    pool = anchors(new, None, everyone, step=1)
    assert 60 < is_row_of(pool, new).sum() < 140
    assert (is_row_of(pool, new) | is_row_of(pool, old)).all()


@pytest.mark.parametrize("options", [{}, {"kmeans_steps": 2}, {"distance": "cosine"}])
@every_quantizer
def test_a_step_in_pieces_moves_the_codebook_once_as_the_whole_batch_does(name, options):
    states = []
    for pieces in (1, 3):
        quantizer = build(name, **options).train()
        for step in range(5):
            batch = draw_latents(6, 4, 5, seed=step).chunk(pieces)
            for number, piece in enumerate(batch):
                quantizer.postpone_update = number + 1 < pieces
                quantizer(piece)
        states.append(quantizer.state_dict())
    assert states[1]["running_steps"] == 5
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value)
