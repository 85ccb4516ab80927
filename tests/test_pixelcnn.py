"""The gated PixelCNN: which codes its kernels see, and what it cannot be built for.

Shapes: h w code grid.
"""

import pytest
import torch
from small_priors import build_prior, codes_that_see, random_codes

from codegrid.codes import Grid
from codegrid.errors import InputError
from codegrid.stage2_prior import GatedPixelCNN

SHAPES = [(4, 7), (7, 4), (1, 5), (5, 1)]
SIZES = [(8,), (8, 5), (8, 5, 6)]  # num_embeddings of one, two and three codes a site
each_size = pytest.mark.parametrize("sizes", SIZES, ids=["one", "two", "three"])


def sites_that_see(site, height, width, first_kernel, kernel, num_layers):
    """Sites whose logits may depend on `site`, found by walking through the kernels layer by layer."""
    vertical, horizontal = set(), set()
    grid = [(r, c) for r in range(height) for c in range(width)]
    for layer in range(num_layers):
        reach = (first_kernel if layer == 0 else kernel) // 2
        first = layer == 0
        # the vertical stack looks up to `reach` rows up, and in later layers at its own row, `reach` to each side
        seen_above = {
            (r, c) for r, c in grid
            if any((r - up, c + side) in ({site} if first else vertical)
                   for up in range(1 if first else 0, reach + 1) for side in range(-reach, reach + 1))
        }  # fmt: skip
        seen_left = {
            (r, c) for r, c in grid
            if any((r, c - left) in ({site} if first else horizontal) for left in range(1 if first else 0, reach + 1))
        }  # fmt: skip
        vertical = seen_above
        horizontal = (set() if first else horizontal) | seen_left | seen_above
    return horizontal


@torch.no_grad()
@each_size
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("first_kernel,kernel", [(5, 3), (3, 5), (7, 3)])
def test_a_code_is_seen_by_exactly_the_later_codes_that_the_kernels_reach(first_kernel, kernel, shape, sizes):
    prior = build_prior("pixelcnn", sizes, shape, num_layers=3, first_kernel=first_kernel, kernel=kernel)
    for place, seen in codes_that_see(prior, random_codes(prior, 1)).items():
        *site, grid = place
        later_at_the_site = {(*site, k) for k in range(grid + 1, len(sizes))}
        further = sites_that_see(tuple(site), *shape, first_kernel, kernel, 3)
        assert seen == {(*other, k) for other in further for k in range(len(sizes))} | later_at_the_site
        assert all(other > place for other in seen)


@pytest.mark.parametrize(
    "options,reason",
    [
        ({"kernel": 4}, "`kernel` 4: it must be an odd number"),
        ({"first_kernel": 1}, "`first_kernel` 1"),
        ({"dropout": 1.0}, "`dropout` 1.0"),
    ],
)
def test_what_the_network_cannot_be_built_for_is_refused_by_name(options, reason):
    with pytest.raises(InputError, match=reason):
        GatedPixelCNN([Grid((4, 4), 8)], **options)
