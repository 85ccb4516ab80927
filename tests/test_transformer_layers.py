"""Layers of transformers: what each position sees, the cache of keys and values, positions.

Shapes: b batch, n positions, d width.
"""

import pytest
import torch

from codegrid.errors import InputError
from codegrid.stage2_prior.transformer.layers import (
    Attention,
    Block,
    FeedForward,
    KeyValueCache,
    Positions,
    RMSNorm,
    initialise,
)
from codegrid.stage2_prior.transformer.rotations import rotate, rotation_at, site_coordinates

WIDTH, HEADS, SITES = 24, 2, 12


def blocks(count=2, **options):
    torch.manual_seed(0)
    return torch.nn.ModuleList(Block(WIDTH, HEADS, **options) for _ in range(count)).double().eval()


def features(batch_size=3):
    return torch.randn(batch_size, SITES, WIDTH, dtype=torch.float64)


def rotation(like, shape=(3, 4)):
    return rotation_at(site_coordinates(shape), WIDTH // HEADS, like)


def run(layers, x, **options):
    for number, block in enumerate(layers):
        x = block(x, layer=number, **options)
    return x


@torch.no_grad()
@pytest.mark.parametrize("seen", ["all", "causal", "blocks"])
@pytest.mark.parametrize("normalise", [False, True])
def test_a_position_sees_those_that_it_may_and_no_other(seen, normalise):
    layers, x = blocks(1, normalise=normalise), features(1)
    scale = torch.tensor([0] * 3 + [1] * 9)
    options = {"all": {}, "causal": {"causal": True}, "blocks": {"mask": scale[:, None] >= scale}}[seen]
    expected = {
        "all": torch.ones(SITES, SITES), "causal": torch.ones(SITES, SITES).tril(), "blocks": scale[:, None] >= scale
    }[seen].bool()  # fmt: skip
    changed = x.repeat(SITES, 1, 1)
    changed[range(SITES), range(SITES)] += torch.randn(SITES, WIDTH, dtype=torch.float64)
    differ = (run(layers, changed, **options) - run(layers, x, **options)).abs().amax(2) > 1e-12
    assert torch.equal(differ.T, expected)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[12], [5, 7], [1] * 12, [1, 10, 1], [11, 1]])
def test_new_positions_beside_kept_keys_and_values_get_the_values_of_the_whole_sequence(pieces):
    layers, x = blocks(normalise=True), features()
    turned = rotation(x)
    expected = run(layers, x, causal=True, turned=(turned, turned))
    cache = KeyValueCache(len(layers), len(x), HEADS, SITES, WIDTH // HEADS, x)
    memory = cache.tensor.data_ptr()
    for count in pieces:
        here = slice(cache.length, cache.length + count)
        part = run(layers, x[:, here], causal=True, cache=cache, turned=(turned[:, here], turned[:, here]))
        cache.length += count
        torch.testing.assert_close(part, expected[:, here])
    assert cache.tensor.data_ptr() == memory and cache.tensor.shape == (2, 2, 3, HEADS, SITES, WIDTH // HEADS)


@torch.no_grad()
def test_positions_of_a_block_see_each_other_and_all_that_is_kept():
    layers, x = blocks(), features()
    block = torch.tensor([0] * 2 + [1] * 6 + [2] * 4)
    expected = run(layers, x, mask=block[:, None] >= block)
    cache = KeyValueCache(len(layers), len(x), HEADS, SITES, WIDTH // HEADS, x)
    for begin, end in ((0, 2), (2, 8), (8, 12)):
        part = run(layers, x[:, begin:end], cache=cache)
        cache.length = end
        torch.testing.assert_close(part, expected[:, begin:end])


def test_a_cache_that_would_not_fit_in_memory_is_refused(monkeypatch):
    monkeypatch.setattr("codegrid.budget.machine_memory", lambda: 10**6)
    needed = 1000 * KeyValueCache.bytes_per_sample(2, SITES, WIDTH, 8)
    assert needed == 1000 * 2 * 2 * SITES * WIDTH * 8
    with pytest.raises(InputError, match=f"keys and values of 1,000 samples would take {needed:,} bytes.*`batch_size`"):
        KeyValueCache(2, 1000, HEADS, SITES, WIDTH // HEADS, torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (1, 6)])
def test_a_rotation_keeps_lengths_and_products_depend_on_differences_of_coordinates(shape):
    coordinates = site_coordinates(shape)
    assert coordinates.tolist() == torch.ones(shape).nonzero().tolist()
    x, y = torch.randn(2, 1, 12, dtype=torch.float64)
    turned_x, turned_y = (rotate(part, rotation_at(coordinates, 12, part)) for part in (x, y))
    torch.testing.assert_close(turned_x.norm(dim=-1), x.norm(dim=-1).expand(len(coordinates)))
    assert torch.equal(turned_x[0], x[0])  # position 0 is the identity
    moved_x, moved_y = (rotate(part, rotation_at(coordinates + 3, 12, part)) for part in (x, y))
    torch.testing.assert_close(moved_x @ moved_y.T, turned_x @ turned_y.T)
    assert len({tuple(row) for row in turned_x.tolist()}) == len(coordinates)


def test_a_coarser_site_stands_in_the_middle_of_the_sites_that_it_covers():
    assert site_coordinates((2, 3), (4, 6)).tolist() == [[0.5, 0.5], [0.5, 2.5], [0.5, 4.5],
                                                         [2.5, 0.5], [2.5, 2.5], [2.5, 4.5]]  # fmt: skip


def test_learnt_positions_differ_at_all_sites_and_a_larger_grid_is_refused():
    positions = Positions((3, 5), 8)
    assert positions().shape == (15, 8) and len({tuple(row) for row in positions().tolist()}) == 15
    assert torch.equal(positions((2, 4)).view(2, 4, 8), positions().view(3, 5, 8)[:2, :4])
    for larger in ((4, 5), (3, 6), (3,), (3, 5, 1)):
        with pytest.raises(InputError, match=r"a grid of .* sites, but this prior has learnt positions for 3×5 sites"):
            positions(larger)


@torch.no_grad()
def test_a_condition_scales_shifts_and_gates_both_halves_and_a_new_block_is_the_identity():
    layers, x = blocks(condition_width=5), features(2)
    initialise(layers, 2)
    condition = torch.randn(2, 5, dtype=torch.float64)
    assert torch.equal(run(layers, x, condition=condition), x)
    for block in layers:
        torch.nn.init.normal_(block.modulation.weight)
    both = run(layers, x, condition=condition)
    torch.testing.assert_close(run(layers, x[1:], condition=condition[1:]), both[1:])
    assert not torch.allclose(run(layers, x, condition=condition.flip(0)), both)


def test_new_weights_have_the_spread_that_their_depth_asks_for():
    block = Block(64, 4)
    initialise(block, 8)
    for layer, spread in ((block.attention.inward, 0.02), (block.attention.outward, 0.005),
                          (block.feed_forward.inward, 0.02), (block.feed_forward.outward, 0.005)):  # fmt: skip
        assert layer.weight.std().item() == pytest.approx(spread, rel=0.05)


def test_a_feed_forward_layer_has_the_weights_of_one_of_four_times_the_width():
    assert [FeedForward(width).inward.out_features for width in (128, 24, 6)] == [2 * 352, 2 * 64, 2 * 32]


def test_a_width_that_the_heads_cannot_share_is_refused():
    for width, heads in ((30, 4), (12, 4), (8, 16)):
        with pytest.raises(InputError, match=f"`channels` {width}: it must be a multiple of {2 * heads}"):
            Attention(width, heads)


@torch.no_grad()
def test_a_root_mean_square_is_one_after_normalisation_in_bfloat16_too():
    x = 100 * torch.randn(3, 5, 256)
    for dtype, within in ((torch.float32, 1e-5), (torch.bfloat16, 0.02)):
        normal = RMSNorm(256)(x.to(dtype))
        assert normal.dtype == dtype
        torch.testing.assert_close(normal.float().square().mean(-1), torch.ones(3, 5), atol=within, rtol=0)
