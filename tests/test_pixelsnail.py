"""PixelSNAIL: attention over all earlier sites, convolutions of any kernel, grids of any size."""

import pytest
import torch
from small_priors import build_prior, codes_that_see, random_codes
from small_quantizers import LargestTensor

from codegrid.codes import Condition
from codegrid.errors import InputError
from codegrid.stage2_prior import sample


def silence(*convolutions):
    for convolution in convolutions:
        convolution.weight.zero_()


@torch.no_grad()
@pytest.mark.parametrize("shape", [(4, 5), (1, 6), (6, 1)])
def test_attention_alone_sees_the_code_at_the_site_before_and_all_others_before_it(shape):
    prior = build_prior("pixelsnail", (8,), shape)
    network = prior.network
    silence(network.input.above, network.input.left)
    for layer in network.blocks[0].layers:
        silence(layer.inner, layer.gates)
    seen = codes_that_see(prior, random_codes(prior, 1))
    assert seen == {place: {other for other in seen if other > place} for place in seen}


@torch.no_grad()
@pytest.mark.parametrize("kernel", [2, 3])
def test_convolutions_alone_see_what_their_kernel_reaches(kernel):
    prior = build_prior("pixelsnail", (8,), (6, 7), kernel=kernel)
    for block in prior.network.blocks:
        silence(block.attention.from_attended)
    codes, reach = random_codes(prior, 1), kernel - 1
    first = {(down, side) for down in range(reach + 1) for side in range(-reach, reach + 1) if down or side > 0}
    # two more convolutions follow, which look up and left
    all_reached = {
        (down + more, side + further) for down, side in first for more in range(2 * reach + 1)
        for further in range(2 * reach + 1)
    }  # fmt: skip
    for (row, column, _), seen in codes_that_see(prior, codes).items():
        reached = {(row + down, column + side) for down, side in all_reached}
        assert seen == {(r, c, 0) for r, c in reached if r < 6 and 0 <= c < 7}


@torch.no_grad()
def test_grids_of_another_size_run_and_do_not_leak():
    prior = build_prior("pixelsnail", (8,), (4, 5))
    codes = (torch.randint(0, 8, (1, 7, 3)),)
    assert prior.logits(codes)[0].shape == (1, 8, 7, 3)
    seen = codes_that_see(prior, codes)
    assert seen == {place: {other for other in seen if other > place} for place in seen}


@torch.no_grad()
@pytest.mark.parametrize("shape", [(6, 4), (2, 7), (1, 5), (5, 1)])
@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_the_cache_gives_the_logits_of_the_parallel_pass_for_every_kernel(kernel, shape):
    prior = build_prior("pixelsnail", (8, 5), shape, kernel=kernel, num_blocks=2, layers_per_block=2)
    codes = random_codes(prior)
    expected = prior.logits(codes)
    steps = prior.steps(Condition(), 2, "torch")
    for grid, (site,) in steps.order:
        torch.testing.assert_close(steps.next_logits()[:, 0], expected[grid].flatten(2)[:, :, site])
        steps.append(codes[grid].flatten(1)[:, site : site + 1])


@torch.no_grad()
def test_a_site_takes_few_operations():
    steps = build_prior("pixelsnail", (8,), (3, 3)).steps(Condition(), 2, "torch")
    steps.append(torch.zeros(2, 8, dtype=torch.int64))
    with LargestTensor() as watch:
        steps.next_logits()
    assert watch.count < 40


@torch.no_grad()
def test_what_convolutions_keep_grows_with_the_width_and_what_attention_keeps_with_the_sites():
    def held(part, height, width):
        steps = build_prior("pixelsnail", (8,), (height, width)).steps(Condition(), 2, "torch")
        caches = {"convolutions": (steps.convolutions.inner, steps.convolutions.gates), "attention": (steps.attention,)}
        return sum(
            tensor.numel() for cache in caches[part] for tensor in vars(cache).values() if hasattr(tensor, "numel")
        )

    assert held("convolutions", 9, 4) == held("convolutions", 3, 4) < held("convolutions", 3, 8)
    few, more, most = (held("attention", height, 4) for height in (3, 6, 9))
    assert most - more == more - few > 0


@pytest.mark.parametrize(
    "options,reason",
    [({"kernel": 1}, "`kernel` 1: it must be"), ({"num_heads": 0}, "`num_heads` 0"), ({"dropout": 0.1}, "`dropout`: ")],
)
def test_what_the_network_cannot_be_built_for_is_refused_by_name(options, reason):
    with pytest.raises(InputError, match=reason):
        build_prior("pixelsnail", **options)


def test_drawing_leaves_the_narrowest_prior_as_it_is():
    prior = build_prior("pixelsnail", channels=1)
    before = prior.fingerprint()
    sample(prior, 1)
    assert prior.fingerprint() == before
