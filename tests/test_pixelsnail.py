"""PixelSNAIL: attention over all earlier sites, convolutions of any kernel, grids of any size."""

import pytest
import torch
from small_priors import build_prior, codes_that_see, random_codes

from codegrid.errors import InputError


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


@pytest.mark.parametrize(
    "options,reason",
    [({"kernel": 1}, "`kernel` 1: it must be"), ({"num_heads": 0}, "`num_heads` 0"), ({"dropout": 0.1}, "`dropout`: ")],
)
def test_what_the_network_cannot_be_built_for_is_refused_by_name(options, reason):
    with pytest.raises(InputError, match=reason):
        build_prior("pixelsnail", **options)
