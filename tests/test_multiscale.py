"""Multi-scale residual quantization, against equations that are written out, and the tokenizer over its grids.

Shapes: b batch, D embedding_dim, K num_embeddings, *sites the latents, *shape the grid of a scale.
"""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_quantizers import SMALL, LargestTensor, build, draw_latents, flatten, is_row_of, moment, train_step
from written_codes import export

from codegrid.codes import Grid, Signal
from codegrid.data.codes import CodeBatch, CodeDataset
from codegrid.errors import InputError
from codegrid.pipelines.generation.encoding import make_header, tables_of
from codegrid.scales import Phi, Scales, refine, shrink
from codegrid.stage1_vqvae.quantizers import QUANTIZERS
from codegrid.stage1_vqvae.tokenizer import VQVAE
from codegrid.stage2_prior.pixelcnn.network import GatedPixelCNN

SITES = [(6,), (7, 5), (3, 4, 5)]
SCALES = [(1, 2, 4, 6), (1, 2, 4, 7), (1, 2, 4, 5)]


def prepare(sites=(7, 5), **options):
    """A small quantizer of these sites, whose convolutions do something."""
    quantizer = build("multiscale", num_phi=3, phi_share=0.4, **options)
    torch.manual_seed(1)
    quantizer.phi_weight.data = torch.randn_like(quantizer.phi_weight) / 6
    quantizer.phi_bias.data = torch.randn_like(quantizer.phi_bias) / 3
    return quantizer, [grid.shape for grid in quantizer.layout(sites)]


@torch.no_grad()
def rests_and_sums(quantizer, latents):
    """What the codes of each scale were chosen for, and the sum after it."""
    shapes = [grid.shape for grid in quantizer.layout(tuple(latents.shape[2:]))]
    phi, total, rests, sums = phi_of(quantizer.tables()), torch.zeros_like(latents), [], []
    for number, codes in enumerate(quantizer.encode(latents)):
        rests.append(shrink(latents - total, shapes[number]))
        vectors = quantizer.entries(0)[codes].movedim(-1, 1)
        total = refine(total if number else None, vectors, number, shapes, phi)
        sums.append(total)
    return rests, sums


def spread(values, sites):
    """Values (b, *shape, ...) of a scale, once for each site of the finest grid."""
    for axis, side in enumerate(sites, 1):
        above = (torch.arange(side) + 0.5) * values.shape[axis] / side
        values = values.index_select(axis, above.long())
    return values


def phi_of(tables):
    return Phi(tables["phi.weight"], tables["phi.bias"])


# The equations, in float64, one axis after the other.


def mean_matrix(size, of):
    """(of, size): the mean over the sites that each of a coarser grid's covers."""
    rows = torch.zeros(of, size, dtype=torch.float64)
    for i in range(of):
        first, last = i * size // of, -(-(i + 1) * size // of)
        rows[i, first:last] = 1 / (last - first)
    return rows


def cubic_matrix(size, of):
    """(of, size): Keys' cubic convolution with a = −0.75, the edge repeated."""

    def weight(x, a=-0.75):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    rows = torch.zeros(of, size, dtype=torch.float64)
    for i in range(of):
        place = (i + 0.5) * size / of - 0.5
        for j in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            rows[i, min(max(j, 0), size - 1)] += weight(place - j)
    return rows


def along_each_axis(x, sites, matrix):
    for axis, side in enumerate(sites, 2):
        x = torch.tensordot(x, matrix(x.shape[axis], side), dims=([axis], [1])).movedim(-1, axis)
    return x


def convolve(x, weight, bias):
    """3×3 over the last two axes, or 3 over the only one."""
    axes = 1 if x.ndim == 3 else 2
    padded = F.pad(x, (1, 1) * axes)
    total = bias.view(-1, *[1] * (x.ndim - 2)).expand_as(x[:1])
    for shift in product(range(3), repeat=axes):
        part = padded
        for axis, (first, side) in enumerate(zip(shift, x.shape[-axes:], strict=True)):
            part = part.narrow(axis - axes, first, side)
        kernel = weight[:, :, 1, shift[0]] if axes == 1 else weight[:, :, shift[0], shift[1]]
        total = total + torch.tensordot(part, kernel, dims=([1], [1])).movedim(-1, 1)
    return total


def quantize_plainly(z, book, weight, bias, share, scales, shapes):
    """Codes, rests and sums of latents (b, D, *sites), with the gradient of φ."""
    total, codes, rests, sums = torch.zeros_like(z), [], [], []
    for number, shape in enumerate(shapes):
        rest = along_each_axis((z - total).detach(), shape, mean_matrix)
        rows = flatten(rest)
        codes.append(torch.cdist(rows, book).argmin(1).view(len(z), *shape))
        larger = along_each_axis(book[codes[-1]].movedim(-1, 1), z.shape[2:], cubic_matrix)
        which = number * len(bias) // len(scales)
        total = total + (1 - share) * larger + share * convolve(larger, weight[which], bias[which])
        rests.append(rows)
        sums.append(total)
    return codes, rests, sums


@pytest.mark.parametrize(("sites", "scales"), zip(SITES, SCALES, strict=True))
def test_codes_vectors_losses_and_gradients_equal_the_equations(sites, scales):
    quantizer, shapes = prepare(sites)
    latents, weights = draw_latents(3, 4, *sites).requires_grad_(), draw_latents(3, 4, *sites, seed=2)
    result = quantizer(latents)
    ((result.vectors * weights).sum() + result.losses.total).backward()

    z = latents.detach().double().requires_grad_()
    weight, bias = (p.detach().double().requires_grad_() for p in (quantizer.phi_weight, quantizer.phi_bias))
    codes, _, sums = quantize_plainly(z, quantizer.entries(0).double(), weight, bias, 0.4, scales, shapes)
    vectors = sums[-1] + z - z.detach()
    commitment = 0.25 * sum((z - each.detach()).square().mean() for each in sums) / len(sums)
    of_phi = sum((each - z.detach()).square().mean() for each in sums) / len(sums)
    ((vectors * weights).sum() + commitment + of_phi).backward()

    assert all(torch.equal(a, b) for a, b in zip(result.codes, codes, strict=True))
    torch.testing.assert_close(result.vectors.double(), vectors, atol=1e-5, rtol=1e-5)
    expected = {"commitment_loss": commitment, "phi_loss": of_phi}
    assert {name: term.item() for name, term in result.losses.terms.items()} == pytest.approx(
        {name: term.item() for name, term in expected.items()}, rel=1e-6
    )
    for ours, theirs in ((latents, z), (quantizer.phi_weight, weight), (quantizer.phi_bias, bias)):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-6 * theirs.grad.abs().max(), rtol=1e-6)


def test_the_codebook_moves_once_a_step_by_one_tally_of_all_scales():
    quantizer, shapes = prepare(decay=0.9, revival_threshold=0.0)
    book, counts = quantizer.entries(0).double().clone(), np.ones(8)
    for step in range(3):
        latents = draw_latents(5, 4, 7, 5, seed=step)
        parts = (quantizer.phi_weight.detach().double(), quantizer.phi_bias.detach().double(), 0.4)
        codes, rests, _ = quantize_plainly(latents.double(), book, *parts, SCALES[1], shapes)
        rests = [rows.view(*of_scale.shape, 4) for rows, of_scale in zip(rests, codes, strict=True)]
        rests, codes = (torch.cat([spread(each, (7, 5)).flatten(0, 2) for each in parts]) for parts in (rests, codes))
        for k in range(8):
            hits = rests[codes == k]
            counts[k] = 0.9 * counts[k] + 0.1 * len(hits)
            book[k] += 0.1 * (hits - book[k]).sum(0) / counts[k]
        for piece in latents.split(2):
            quantizer(piece, moment(step))
        quantizer.after_step(step, 0)
        torch.testing.assert_close(quantizer.entries(0).double(), book, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(quantizer.book.running_hits.numpy(), counts, rtol=1e-6)


def test_a_codebook_by_gradient_learns_from_the_rests_and_not_through_the_sum():
    quantizer, latents = build("multiscale of gradient"), draw_latents(3, 4, 8)
    quantizer(latents).vectors.sum().backward()
    assert quantizer.book.codebook.grad is None and quantizer.phi_weight.grad.abs().max() > 0
    quantizer(latents).losses.total.backward()
    alone = QUANTIZERS["gradient"](**SMALL["gradient"])
    alone.load_state_dict(quantizer.book.state_dict())
    _, sums = rests_and_sums(quantizer, latents)
    for before, side in zip([torch.zeros_like(latents), *sums], (1, 2, 4, 8), strict=False):
        rest = F.adaptive_avg_pool1d(latents - before, side)
        (alone(rest).losses.terms["codebook_loss"] / 4).backward()
    torch.testing.assert_close(quantizer.book.codebook.grad, alone.codebook.grad)


@pytest.mark.parametrize("base", ["ema", "clustered-gradient"])
def test_dead_entries_move_to_rests_of_the_batch(base):
    quantizer, _ = prepare(codebook=base, revival_threshold=0.9)
    quantizer.book.codebook.data[1:] += 100  # never chosen
    quantizer.book.running_hits.zero_()
    latents = draw_latents(4, 4, 7, 5)
    rests, _ = rests_and_sums(quantizer, latents)
    train_step(quantizer, latents)
    of_scales = torch.stack([is_row_of(quantizer.entries(0)[1:], flatten(rest)) for rest in rests])
    assert of_scales.any(0).all() and of_scales.any(1).sum() > 1


def test_kmeans_sets_the_codebook_to_means_of_the_rests_that_it_leaves():
    quantizer, latents = build("multiscale", kmeans_steps=6), draw_latents(16, 4, 8)
    quantizer.book.codebook += 100  # what it leaves over tells nothing
    errors = []
    for step in range(6):
        train_step(quantizer, latents, step=step)
        errors.append(F.mse_loss(quantizer(latents).vectors, latents).item())
    assert errors[0] < 0.6 * latents.square().mean()  # at once, for each scale starts from the rests of those found
    assert errors[-1] <= errors[0]
    of_scales = [spread(rest.movedim(1, -1), (8,)) for rest in rests_and_sums(quantizer, latents)[0]]
    rests = torch.cat([rest.flatten(0, 1) for rest in of_scales])
    codes = torch.cat([spread(of_scale, (8,)).flatten() for of_scale in quantizer.encode(latents)])
    members = F.one_hot(codes, 8).float()
    gaps = members.T @ rests / members.sum(0).clamp_min(1)[:, None] - quantizer.entries(0)
    assert gaps[members.sum(0) > 0].abs().max() < 0.3


def test_no_tensor_is_as_large_as_sites_times_entries_of_a_large_codebook():
    quantizer = QUANTIZERS["multiscale"](num_embeddings=2**18, embedding_dim=2).train()
    latents = draw_latents(1, 2, 8, 8).requires_grad_()
    with LargestTensor() as largest:
        result = train_step(quantizer, latents)
        result.losses.total.backward()
    assert largest.numel <= 4 * 2**18 and max(of_scale.max() for of_scale in result.codes) > 2**16


# Scales.


@pytest.mark.parametrize(
    ("sites", "options", "shapes"),
    [
        ((7, 7), {}, [(1, 1), (2, 2), (4, 4), (7, 7)]),
        ((8, 8), {"scales": (2, 8)}, [(2, 2), (8, 8)]),
        ((8, 3), {}, [(1, 1), (2, 1), (4, 2), (8, 3)]),
        ((2, 6, 6), {"scales": (1, 3, 6)}, [(1, 1, 1), (1, 3, 3), (2, 6, 6)]),
        ((1,), {}, [(1,)]),
        ((5,), {"scales": (5,)}, [(5,)]),
    ],
)
def test_scales_end_at_the_grid_and_keep_its_proportions(sites, options, shapes):
    quantizer = build("multiscale", **options)
    assert quantizer.layout(sites) == tuple(Grid(shape, 8) for shape in shapes)
    vectors, codes, _ = quantizer(draw_latents(2, 4, *sites))
    assert [tuple(of_scale.shape[1:]) for of_scale in codes] == shapes and torch.isfinite(vectors).all()


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ((1, 2, 4), "`scales` 1 2 4: the last one must be 7, the side of the code grid, as in 1 2 4 7"),
        ((1, 2, 4, 8), "`scales` 1 2 4 8: the last one must be 7"),
        ((1, 2, 2, 7), "`scales` 1 2 2 7: each must be larger than the one before"),
        ((4, 7, 2), "`scales` 4 7 2: each must be larger"),
        ((), "`scales` of none: "),
        ((0, 7), "`scales` 0: it must be a whole number from 1"),
    ],
)
def test_scales_that_do_not_grow_to_the_grid_are_refused(scales, message):
    with pytest.raises(InputError, match=message):
        VQVAE(Signal(channels=1, size=(28, 20)), quantizer="multiscale", scales=scales, hidden_channels=8)


@pytest.mark.parametrize("sites", SITES)
def test_what_a_prior_is_shown_follows_from_the_tables_and_is_bitwise_what_the_tokenizer_adds_up(sites):
    quantizer, shapes = prepare(sites)
    latents = draw_latents(2, 4, *sites)
    codes, vectors = quantizer.encode(latents), quantizer(latents).vectors
    _, sums = rests_and_sums(quantizer, latents)
    entries = [quantizer.entries(0)] * len(shapes)
    scales = Scales(entries, phi_of(quantizer.tables()), shapes)
    for number in range(1, len(shapes)):
        shown = scales.so_far(codes[:number])
        assert shown.shape == (2, 4, *shapes[number])
        assert torch.equal(shown, F.interpolate(sums[number - 1], shapes[number], mode="area"))
    assert torch.equal(scales.so_far(codes), vectors)
    with pytest.raises(InputError, match="`codes` of no grid"):
        scales.so_far(())


# The tokenizer.


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer of images of 26×14 over grids of 1×1, 2×1, 4×2 and 7×4 whose finer codes add little."""
    torch.manual_seed(0)
    options = {"num_embeddings": 16, "embedding_dim": 4, "hidden_channels": 8}
    made = VQVAE(Signal(channels=1, size=(26, 14)), quantizer="multiscale", **options).eval()
    made.quantizer.book.codebook[3] = 0
    return made


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 1, 26, 14, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_images_of_other_sizes_have_as_many_grids(tokenizer, images):
    assert [grid.shape for grid in tokenizer.layout] == [(1, 1), (2, 1), (4, 2), (7, 4)]
    other = torch.nn.functional.pad(images, (0, 10, 0, 20))
    codes = tokenizer.encode(other)
    shapes = [(2, 1), (3, 2), (7, 3), (12, 6)]
    assert [tuple(of_grid.shape[1:]) for of_grid in codes] == shapes
    assert shapes == [grid.shape for grid in tokenizer.quantizer.layout((12, 6))]
    assert tokenizer.reconstruct(other).shape == other.shape and tokenizer.decode(codes).shape[2:] == (48, 24)


def test_grids_that_do_not_belong_together_are_refused(tokenizer, images):
    codes = tokenizer.encode(images)
    with pytest.raises(InputError, match="`codes` of 7×4, 2×1, 4×2, 7×4: grids that end so must be of 1×1, 2×1, 4×2"):
        tokenizer.decode((codes[3], *codes[1:]))


def test_a_draw_whose_finer_grids_are_open_is_shown_as_what_the_coarser_ones_make(tokenizer, images):
    codes = tokenizer.encode(images)
    for known in range(1, 5):
        drawn = tuple(torch.full_like(each, number < known, dtype=torch.bool) for number, each in enumerate(codes))
        quiet = tuple(each if number < known else torch.full_like(each, 3) for number, each in enumerate(codes))
        unfinished = tuple(each.masked_fill(~mark, -1) for each, mark in zip(codes, drawn, strict=True))
        assert torch.equal(tokenizer.preview(unfinished, drawn), tokenizer.decode(quiet))


def test_a_coarse_site_is_kept_only_where_all_that_it_averages_is_known(tokenizer):
    mask = torch.zeros(26, 14, dtype=torch.bool)
    mask[:16] = True  # four rows of seven
    kept = tokenizer.kept_sites(mask)
    assert [tuple(of_grid.shape) for of_grid in kept] == [grid.shape for grid in tokenizer.layout]
    rows = [of_grid.all(1).tolist() for of_grid in kept]
    assert rows == [[False], [True, False], [True, True, False, False], [True] * 4 + [False] * 3]
    mask[15] = False  # the middle row is in both halves, for seven rows cannot be halved
    assert tokenizer.kept_sites(mask)[1].tolist() == [[False], [False]]


def test_the_gated_pixelcnn_refuses_grids_of_several_shapes_by_name(tokenizer):
    words = "`layout` of 1×1, 2×1, 4×2, 7×4: a pixelcnn prior learns grids .*of one shape.*ema, residual"
    with pytest.raises(InputError, match=words):
        GatedPixelCNN(tokenizer.layout)


def test_codes_and_tables_of_an_export_make_the_vectors_without_the_tokenizer(tokenizer, images, tmp_path):
    codes = tokenizer.encode(images)
    header, batch = make_header(tokenizer, 2, [], "train", "s" * 64), CodeBatch(codes, {})
    export(tmp_path / "c", header, lambda rows: batch, tables_of(tokenizer))
    dataset = CodeDataset(tmp_path / "c")
    tables = dataset.tables()
    assert tables.keys() == {*(f"entries.{grid}" for grid in range(4)), "phi.weight", "phi.bias"}
    vectors = Scales.of_tables(tables, dataset.layout).so_far(dataset.batch(range(2)).codes)
    assert torch.equal(vectors, tokenizer.quantizer.look_up(codes))
