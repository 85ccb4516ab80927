"""Encoder, decoder, and the tokenizer made of them."""

import json

import pytest
import torch
from small_quantizers import fitting

from codegrid.codes import Grid, Moment, Signal
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.stage1_vqvae.networks import PaperNetwork, ResidualBlock
from codegrid.stage1_vqvae.quantizers import QUANTIZERS
from codegrid.stage1_vqvae.tokenizer import VQVAE
from codegrid.stage1_vqvae.usage import LayoutUsage

SIZES = [(32, 32), (28, 20), (13, 31), (1, 1)]
MOMENT = Moment(10, 1000, Noise(0))


def build(size=(28, 20), downsampling=4, quantizer="ema", **options):
    torch.manual_seed(0)
    own = fitting(quantizer, num_embeddings=16, embedding_dim=4)
    options = {"hidden_channels": 8, "downsampling": downsampling, "quantizer": quantizer, **own, **options}
    return VQVAE(Signal(channels=3, size=size), **options).eval()


def draw_images(size=(28, 20), count=2):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_a_residual_block_leaves_its_input_unchanged():
    x = torch.randn(1, 4, 3, 3)
    before = x.clone()
    ResidualBlock(4, 2)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_every_residual_block_has_weights_of_its_own(part):
    networks = [PaperNetwork(8, residual_channels=4, num_residual_blocks=n) for n in (1, 2, 3)]
    counts = [sum(p.numel() for p in getattr(each, part)(3, 5, 4).parameters()) for each in networks]
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("downsampling", [1, 2, 4, 8, 16])
def test_reconstructions_have_the_size_of_the_images(size, downsampling):
    tokenizer, images = build(size, downsampling), draw_images(size)
    (codes,) = tokenizer.encode(images)
    grid = Grid((-(-size[0] // downsampling), -(-size[1] // downsampling)), 16)
    assert tokenizer.layout == (grid,) and codes.shape == (2, *grid.shape)
    assert tokenizer(images).output.shape == tokenizer.decode((codes,)).shape == images.shape


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("size", SIZES)
def test_codes_decode_to_the_images_that_forward_gives(quantizer, size):
    tokenizer, images = build(size, quantizer=quantizer), draw_images(size)
    with torch.no_grad():
        result = tokenizer(images)
    codes = tokenizer.encode(images)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(codes, result.codes, strict=True))
    assert torch.equal(tokenizer.decode(codes), result.output)
    assert torch.equal(tokenizer.reconstruct(images), result.output)
    latents = tokenizer.encode_latents(images)
    assert torch.equal(tokenizer.decode_latents(latents, quantize=True), result.output)
    assert not torch.equal(tokenizer.decode_latents(latents, quantize=False), result.output)


def test_images_of_another_size_keep_it():
    tokenizer, images = build((13, 31)), draw_images((9, 10))
    assert tokenizer.reconstruct(images).shape == images.shape
    latents = tokenizer.encode_latents(images)
    assert latents[0].shape == (2, 4, 3, 3) and tokenizer.decode_latents(latents, quantize=True).shape == (2, 3, 12, 12)


def test_decode_crops_to_the_size_that_is_asked_for():
    tokenizer = build((13, 31))
    codes = torch.zeros(1, 4, 8, dtype=torch.int64)
    assert tokenizer.decode((codes,)).shape[2:] == (13, 31)
    assert tokenizer.decode((codes,), (14, 30)).shape[2:] == (14, 30)
    assert tokenizer.decode((codes[:, :2],)).shape[2:] == (8, 32)


@pytest.mark.parametrize("code", [-1, 16])
def test_decode_refuses_a_code_outside_the_codebook(code):
    good = torch.zeros(1, 7, 5, dtype=torch.int64)
    with pytest.raises(InputError, match=f"`codes` of grid 1: code {code}, but its codes are 0 to 15"):
        build(quantizer="residual").decode((good, torch.full((1, 7, 5), code)))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 7, 5), "`codes` is one tensor: it must be a tuple of 1"),
        ((), "`codes` is a tuple of 0"),
        ((torch.zeros(7, 5, dtype=torch.int64),), r"grid 0 have the shape \(7, 5\)"),
        ((torch.zeros(1, 7, 5),), "grid 0 are float32"),
    ],
)
def test_decode_refuses_what_is_not_a_tuple_of_grids(codes, message):
    with pytest.raises(InputError, match=message):
        build().decode(codes)


@pytest.mark.parametrize("call", ["encode", "reconstruct"])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((1, 3, 28, 20), 255, dtype=torch.uint8), "`x` holds uint8: .*as_images"),
        (draw_images() * 127.5 + 127.5, "`x` holds values from .* to 25.*as_images"),
        (torch.full((1, 3, 28, 20), torch.nan), "`x` holds values from nan"),
        (draw_images() * torch.inf, "`x` holds values from -inf"),
    ],
)
def test_images_out_of_their_range_are_refused(call, images, message):
    with pytest.raises(InputError, match=message):
        getattr(build(), call)(images)


def test_images_of_0_to_1_are_warned_of():
    with pytest.warns(UserWarning, match=r"2 \* x - 1"):
        build().encode(draw_images().abs())


def test_images_of_another_precision_have_the_same_codes():
    tokenizer, images = build(), draw_images()
    assert torch.equal(*tokenizer.encode(images.double()), *tokenizer.encode(images))
    tokenizer.half().encode(images)


def test_images_latents_and_masks_of_another_shape_are_refused():
    tokenizer = build()
    with pytest.raises(InputError, match=r"`x` has the shape \(1, 1, 28, 20\)"):
        tokenizer.encode(torch.zeros(1, 1, 28, 20))
    with pytest.raises(InputError, match=r"`latents` have the shape \(1, 3, 7, 5\)"):
        tokenizer.decode_latents((torch.zeros(1, 3, 7, 5),), quantize=True)
    with pytest.raises(InputError, match=r"`mask` has the shape \(20, 28\)"):
        tokenizer.kept_sites(torch.zeros(20, 28, dtype=torch.bool))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"downsampling": factor}, f"`downsampling` {factor}: .*power of two") for factor in (0, 3, 6, -4)),
        ({"hidden_channels": 1}, "`hidden_channels` 1"),
        ({"data_variance": 0.0}, "`data_variance` 0.0"),
        ({"quantizer": "nothing"}, "`quantizer` 'nothing'"),
        ({"hidden": 8}, "`hidden`: EMAQuantizer has no such option"),
        ({"signal": {"channels": 2, "size": [8, 8]}}, "`signal` .*1 or 3 channels"),
        ({"signal": {"channels": 1, "size": [8]}}, "`signal` .*height, width"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        VQVAE(**options)


def test_the_reconstruction_loss_is_the_squared_error_over_the_variance():
    tokenizer, images = build(data_variance=0.25, quantizer="gradient"), draw_images()
    result = tokenizer(images)
    terms = result.losses.terms
    assert list(terms) == ["reconstruction_loss", "codebook_loss", "commitment_loss"]
    torch.testing.assert_close(terms["reconstruction_loss"], (result.output - images).square().mean() / 0.25)
    torch.testing.assert_close(result.losses.total, sum(terms.values()))


def test_only_a_moment_and_a_step_move_the_codebook():
    tokenizer, images = build().train(), draw_images()
    before = {key: value.clone() for key, value in tokenizer.state_dict().items()}

    def changed():
        return {key for key, value in tokenizer.state_dict().items() if not torch.equal(value, before[key])}

    tokenizer.encode(images)
    tokenizer(images)
    tokenizer.after_step(10, 0)
    assert changed() == set() and tokenizer.training
    tokenizer(images, moment=MOMENT)
    assert changed() == set()
    tokenizer.after_step(10, 0)
    assert changed() == {"quantizer.codebook", "quantizer.running_hits"}


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_its_config_builds_the_tokenizer_again(quantizer):
    tokenizer, images = build(quantizer=quantizer, downsampling=2), draw_images()
    again = VQVAE(**json.loads(json.dumps(tokenizer.config))).eval()
    again.load_state_dict(tokenizer.state_dict())
    assert again.config == tokenizer.config and again.layout == tokenizer.layout
    assert torch.equal(again.reconstruct(images), tokenizer.reconstruct(images))


def test_weights_are_float32_whatever_the_default_is():
    torch.set_default_dtype(torch.float64)
    try:
        tokenizer = build()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in tokenizer.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("quantizer", ["ema", "fsq", "residual"])
def test_a_preview_is_grey_where_no_grid_is_drawn(quantizer):
    tokenizer = build((13, 30), quantizer=quantizer)
    codes = tokenizer.encode(draw_images((13, 30)))
    drawn = tuple(torch.zeros_like(of_grid, dtype=torch.bool) for of_grid in codes)
    drawn[0][0, :2], drawn[0][1] = True, True
    unfinished = tuple(of_grid.masked_fill(~known, -1) for of_grid, known in zip(codes, drawn, strict=True))
    preview = tokenizer.preview(unfinished, drawn)
    assert preview.shape == (2, 3, 13, 30)
    assert not preview[0, :, 8:].any() and preview[0, :, :8].all() and preview[1].all()
    everything = tuple(torch.ones_like(known) for known in drawn)
    assert torch.equal(tokenizer.preview(codes, everything), tokenizer.decode(codes))


def test_sites_are_kept_whose_pixels_are_all_known():
    tokenizer = build((13, 30), quantizer="residual")
    mask = torch.zeros(13, 30, dtype=torch.bool)
    mask[:9], mask[12, 28:] = True, True
    expected = torch.zeros(4, 8, dtype=torch.bool)
    expected[:2], expected[3, 7] = True, True  # the last site has two pixels only
    assert all(torch.equal(kept, expected) for kept in tokenizer.kept_sites(mask))
    assert tokenizer.nll(draw_images((13, 30)), ()) is None


def test_usage_of_each_grid_does_not_depend_on_the_batches():
    layout = (Grid((3,), 4), Grid((3,), 8))
    codes = (torch.tensor([[0, 1, 0], [1, 0, 1]]), torch.tensor([[0, 1, 2], [3, 4, 5]]))
    whole, halves = LayoutUsage(layout), LayoutUsage(layout)
    whole.add(codes)
    for half in range(2):
        halves.add(tuple(of_grid[half : half + 1] for of_grid in codes))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole.counts, halves.counts, strict=True))
    assert whole.counts[0].tolist() == [3, 3, 0, 0]
    first, second = whole.by_grid()
    assert first == (pytest.approx(2), 0.5, 2) and second == (pytest.approx(6), 0.75, 2)
    assert whole.figures() == (pytest.approx(4), 1 - 4 / 12, 4)
