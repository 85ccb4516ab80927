"""Encoder, decoder, and the tokenizer made of them."""

import pytest
import torch

from codegrid.stage1_vqvae import VQVAE
from codegrid.stage1_vqvae.networks import Decoder, Encoder, ResidualBlock
from codegrid.stage1_vqvae.quantizers import QUANTIZERS

SIZES = [(32, 32), (28, 20), (13, 31), (1, 1)]


def build(size=(28, 20), downsampling=4, **options):
    torch.manual_seed(0)
    options = {"hidden_channels": 8, "num_embeddings": 16, "embedding_dim": 4, **options}
    return VQVAE(in_channels=3, image_size=size, downsampling=downsampling, **options).eval()


def test_a_residual_block_leaves_its_input_unchanged():
    x = torch.randn(1, 4, 3, 3)
    before = x.clone()
    ResidualBlock(4, 2)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("network", [Encoder, Decoder])
def test_every_residual_block_has_weights_of_its_own(network):
    counts = [sum(p.numel() for p in network(3, 8, 4, blocks, 5, 4).parameters()) for blocks in (1, 2, 3)]
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("downsampling", [1, 2, 4, 8, 16])
def test_reconstructions_have_the_size_of_the_images(size, downsampling):
    tokenizer, images = build(size, downsampling), torch.rand(2, 3, *size) * 2 - 1
    codes = tokenizer.encode(images)
    assert codes.shape == (2, *tokenizer.grid_shape) == (2, -(-size[0] // downsampling), -(-size[1] // downsampling))
    assert tokenizer(images).images.shape == tokenizer.decode(codes).shape == images.shape


@pytest.mark.parametrize("downsampling", [0, 3, 6, -4])
def test_a_factor_that_is_no_power_of_two_is_refused(downsampling):
    with pytest.raises(ValueError, match="power of two"):
        build(downsampling=downsampling)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("size", SIZES)
def test_codes_decode_to_the_images_that_forward_gives(quantizer, size):
    tokenizer, images = build(size, quantizer=quantizer), torch.rand(2, 3, *size) * 2 - 1
    with torch.no_grad():
        result = tokenizer(images)
    assert torch.equal(tokenizer.encode(images), result.codes)
    assert torch.equal(tokenizer.decode(result.codes), result.images)


def test_decode_crops_to_the_size_that_is_asked_for():
    tokenizer = build((13, 31))
    codes = torch.zeros(1, 4, 8, dtype=torch.int64)
    assert tokenizer.decode(codes).shape[2:] == (13, 31)
    assert tokenizer.decode(codes, (14, 30)).shape[2:] == (14, 30)
    assert tokenizer.decode(codes[:, :2]).shape[2:] == (8, 32)


@pytest.mark.parametrize("code", [-1, 16])
def test_decode_refuses_a_code_outside_the_codebook(code):
    with pytest.raises(ValueError, match=f"code {code}, but the codebook has entries 0 to 15"):
        build().decode(torch.full((1, 7, 5), code))


def test_encode_refuses_images_with_other_channels():
    with pytest.raises(ValueError, match="is needed"):
        build().encode(torch.zeros(1, 1, 28, 20))


def test_the_reconstruction_loss_is_the_squared_error_over_the_variance():
    tokenizer, images = build(data_variance=0.25), torch.rand(2, 3, 28, 20) * 2 - 1
    result = tokenizer(images)
    torch.testing.assert_close(result.reconstruction_loss, (result.images - images).square().mean() / 0.25)
    torch.testing.assert_close(result.loss, result.reconstruction_loss + result.quantizer_loss)


def test_encode_in_train_mode_changes_no_state():
    tokenizer = build().train()
    before = {key: value.clone() for key, value in tokenizer.state_dict().items()}
    tokenizer.encode(torch.rand(2, 3, 28, 20))
    assert all(torch.equal(value, before[key]) for key, value in tokenizer.state_dict().items())
    assert tokenizer.training
