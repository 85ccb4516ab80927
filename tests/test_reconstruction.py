"""Reconstruction terms: what they are, against NumPy, and that a trained likelihood is one."""

import json
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codegrid import VQVAE, InputError, Signal
from codegrid.data.images import to_float
from codegrid.stage1_vqvae.options import OF_IMAGES, Reconstruction
from codegrid.stage1_vqvae.reconstruction import RECONSTRUCTIONS, PixelLikelihood, to_values

LIKELIHOODS = [name for name, term in RECONSTRUCTIONS.items() if issubclass(term, PixelLikelihood)]
VARIANCE = 0.2

every_term = pytest.mark.parametrize("name", RECONSTRUCTIONS)
every_likelihood = pytest.mark.parametrize("name", LIKELIHOODS)


def build(reconstruction="mse", **options):
    torch.manual_seed(0)
    sizes = {"hidden_channels": 8, "num_embeddings": 16, "embedding_dim": 4}
    signal = Signal(channels=3, size=(9, 12))
    return VQVAE(signal, VARIANCE, reconstruction=reconstruction, **sizes, **options).eval()


def draw_values(*shape):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def draw_outputs(term, count, size=(3, 4), spread=1.0):
    generator = torch.Generator().manual_seed(2)
    return spread * torch.randn(count, term.outputs, *size, generator=generator, dtype=torch.float64)


def softplus(x):
    return np.logaddexp(x, 0)


def nats_of_bins(distribution, low, high, values):
    """−ln of what a symmetric distribution function gains from low to high, in its lower half, where it has digits."""
    low, high = np.where(values == 0, -np.inf, low), np.where(values == 255, np.inf, high)
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
    return -np.log(distribution(high) - distribution(low))


def logistic_by_numpy(outputs, values):
    """−ln p (b, 3, h, w) of 8-bit values, straight from the formula."""
    means, logs = (outputs[:, :3] + 1) * 127.5, outputs[:, 3:6]
    scales = 0.1 * np.exp(softplus(logs + np.log(np.sqrt(3 * VARIANCE) / np.pi * 127.5 / 0.1)))
    low, high = ((values + end - means) / scales for end in (-0.5, 0.5))
    return nats_of_bins(lambda distance: 1 / (1 + np.exp(-distance)), low, high, values)


def coupled_by_numpy(outputs, values):
    """−ln p (b, 3, h, w) of 8-bit values: logistic, with means that follow the errors of the channels before."""
    means, follows = (outputs[:, :3] + 1) * 127.5, outputs[:, 6:]
    errors = values - means
    green, blue = follows[:, 0] * errors[:, 0], follows[:, 1] * errors[:, 0] + follows[:, 2] * errors[:, 1]
    moved = outputs[:, :6] + np.stack([0 * green, green, blue, *[0 * green] * 3], axis=1) / 127.5
    return logistic_by_numpy(moved, values)


def laplace_by_numpy(outputs, values):
    """−ln p (b, 3, h, w) of 8-bit values: what the distribution function gains over their bins."""
    medians, scales = outputs[:, :3], np.exp(-7 + softplus(outputs[:, 3:] + 7))
    places = [0.1 + 0.8 * (values + end) / 255 for end in (-0.5, 0.5)]
    low, high = ((np.log(at / (1 - at)) - medians) / scales for at in places)

    def distribution(distance):
        tail = np.exp(-np.abs(distance)) / 2
        return np.where(distance < 0, tail, 1 - tail)

    return nats_of_bins(distribution, low, high, values)


def test_the_flag_offers_the_terms_of_the_table():
    assert get_args(Reconstruction) == tuple(RECONSTRUCTIONS)


BY_NUMPY = {"logistic": logistic_by_numpy, "coupled-logistic": coupled_by_numpy, "logit-laplace": laplace_by_numpy}


@pytest.mark.parametrize(("name", "by_numpy"), BY_NUMPY.items())
def test_a_likelihood_is_that_of_its_formula(name, by_numpy):
    term, values = RECONSTRUCTIONS[name](3, VARIANCE), draw_values(20, 3, 3, 4)
    values[0], values[1] = 0, 255
    outputs = draw_outputs(term, 20, spread=0.5)
    expected = by_numpy(outputs.numpy(), values.double().numpy())
    assert term.nats(outputs, to_float(values)).numpy() == pytest.approx(expected, abs=1e-6)
    assert term.loss(outputs, to_float(values)).item() == pytest.approx(expected.mean(), abs=1e-6)
    in_float32 = term.nll(outputs.float(), to_float(values)).numpy()
    assert in_float32 == pytest.approx(expected.sum((1, 2, 3)), rel=1e-5)


def test_the_logit_laplace_is_the_density_of_the_paper_where_bins_are_narrow():
    term, values = RECONSTRUCTIONS["logit-laplace"](1, VARIANCE), draw_values(20, 1, 3, 4).clamp(1, 254)
    medians, logs = draw_outputs(term, 20).abs().chunk(2, dim=1)  # scales above 1, and bins of at most 0.04
    at = 0.1 + 0.8 * values.double() / 255
    density = (2 * at * (1 - at)).log() + logs + (torch.logit(at) - medians).abs() / logs.exp()
    in_a_bin = density - np.log(0.8 / 255)
    assert (term.nats(torch.cat([medians, logs], dim=1), to_float(values)) - in_a_bin).abs().max() < 0.02


@every_likelihood
@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0, 50.0])
def test_the_probabilities_of_the_256_values_of_each_channel_sum_to_one(name, spread):
    term = RECONSTRUCTIONS[name](3, VARIANCE)
    outputs = draw_outputs(term, 1, spread=spread)
    for channel in range(3):
        values = draw_values(1, 3, 3, 4).repeat(256, 1, 1, 1)
        values[:, channel] = torch.arange(256)[:, None, None]
        nats = term.nats(outputs.expand(256, -1, -1, -1), to_float(values))
        assert nats.isfinite().all() and (nats > -1e-12).all()
        torch.testing.assert_close((-nats[:, channel]).exp().sum(0), torch.ones(3, 4).double(), rtol=0, atol=1e-9)


@every_likelihood
def test_the_image_is_where_a_sharp_likelihood_has_its_mode(name):
    term, outputs = RECONSTRUCTIONS[name](1, VARIANCE), torch.full((1, 2, 1, 50), -4.0)
    outputs[:, 0] = torch.linspace(-0.9, 0.9, 50)
    values = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(256, 1, 1, 50)
    nats = term.nats(outputs.expand(256, -1, -1, -1), to_float(values))
    assert torch.equal(nats.argmin(0), to_values(term.image(outputs))[0])


@every_term
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("value", [-1e6, -80.0, 0.0, 80.0, 1e6])
def test_gradients_are_finite_whatever_the_decoder_gives(name, place, value):
    term = RECONSTRUCTIONS[name](3, VARIANCE)
    outputs = draw_outputs(term, 3).float()
    outputs[:, 3 * place : 3 * place + 3] = value  # means, scales, or coefficients
    outputs[0] = value
    x = torch.tensor([-1.0, 0.3, 1.0]).view(3, 1, 1, 1).expand(3, 3, 3, 4)
    outputs.requires_grad_()
    loss = term.loss(outputs, x)
    loss.backward()
    assert loss.isfinite() and outputs.grad.isfinite().all()


def test_a_scale_at_its_least_can_still_grow():
    for name in LIKELIHOODS:
        term = RECONSTRUCTIONS[name](1, VARIANCE)
        outputs = torch.zeros(1, 2, 1, 1)
        outputs[:, 1] = -9.0
        outputs.requires_grad_()
        term.loss(outputs, torch.ones(1, 1, 1, 1) * 0.5).backward()
        assert outputs.grad[0, 1] < -1


def test_an_error_is_measured_in_the_spread_of_the_data():
    x, outputs = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for name, error in (("mse", (x - outputs).square().mean()), ("l1", (x - outputs).abs().mean())):
        at = [RECONSTRUCTIONS[name](3, VARIANCE * scale**2).loss(outputs * scale, x * scale) for scale in (1, 0.3)]
        torch.testing.assert_close(at[0], error / VARIANCE ** (1 if name == "mse" else 0.5))
        torch.testing.assert_close(at[0], at[1])


def test_the_default_is_the_squared_error_over_the_variance_to_the_last_bit():
    tokenizer, x = build(), to_float(draw_values(2, 3, 9, 12))
    result = tokenizer(x)
    assert torch.equal(result.losses.terms["reconstruction_loss"], F.mse_loss(result.output, x) / VARIANCE)
    torch.manual_seed(0)
    plain = VQVAE(Signal(channels=3, size=(9, 12)), VARIANCE, hidden_channels=8, num_embeddings=16, embedding_dim=4)
    assert plain.fingerprint() == tokenizer.fingerprint() and tokenizer.decoder[-1].out_channels == 3


@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_tokenizer_of_any_term_decodes_what_it_was_trained_to_and_is_saved(name, tmp_path):
    tokenizer, x = build(name), to_float(draw_values(2, 3, 9, 12))
    result, codes = tokenizer(x), tokenizer.encode(x)
    assert result.output.shape == x.shape and torch.equal(tokenizer.decode(codes), result.output)
    latents = tokenizer.encode_latents(x)
    assert torch.equal(tokenizer.decode_latents(latents, quantize=True), result.output)
    result.losses.total.backward()
    assert all(weight.grad is not None for weight in tokenizer.decoder.parameters())
    tokenizer.save_pretrained(tmp_path)
    again = VQVAE.from_pretrained(tmp_path)
    assert again.config["reconstruction"] == name and again.fingerprint() == tokenizer.fingerprint()
    assert torch.equal(again.decode(codes), result.output)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_the_likelihood_of_a_tokenizer_is_what_it_was_trained_on(name):
    tokenizer, x = build(name), to_float(draw_values(2, 3, 9, 12))
    nats, term = tokenizer.nll(x, tokenizer.encode(x)), tokenizer(x).losses.terms["reconstruction_loss"]
    if name not in LIKELIHOODS:
        assert nats is None
        return
    assert nats.shape == (2,) and not nats.requires_grad
    assert nats.mean().item() == pytest.approx(term.item() * 3 * 9 * 12, rel=1e-6)
    halves = torch.cat([tokenizer.nll(x[[i]], tokenizer.encode(x[[i]])) for i in range(2)])
    torch.testing.assert_close(nats, halves)
    torch.testing.assert_close(tokenizer.nll(x + 1 / 256, tokenizer.encode(x)), nats)  # the same 8 bits


@every_likelihood
def test_likelihoods_are_of_float32_under_autocast_and_in_half_precision(name):
    tokenizer, x = build(name), to_float(draw_values(2, 3, 9, 12))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = tokenizer.decoder(tokenizer.quantizer.look_up(tokenizer.encode(x)))[..., :9, :12]
        loss = tokenizer.reconstruction.loss(outputs, x)
    assert outputs.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert torch.equal(loss, tokenizer.reconstruction.loss(outputs.float(), x))
    half = build(name).bfloat16()
    assert half.nll(x, half.encode(x)).isfinite().all()


def test_an_image_far_from_its_mean_costs_what_its_distance_says():
    term, x = RECONSTRUCTIONS["logistic"](1, VARIANCE), torch.ones(1, 1, 1, 1)
    outputs = torch.zeros(1, 2, 1, 1)
    nearer, further = (term.loss(outputs + torch.tensor([-mean, 0.0]).view(1, 2, 1, 1), x) for mean in (1e3, 2e3))
    scale = np.sqrt(3 * VARIANCE) / np.pi * 127.5 + 0.1  # the least one is added
    assert (further - nearer).item() == pytest.approx(1e3 * 127.5 / scale, rel=1e-4)


def test_a_model_from_before_there_were_terms_is_one_of_squared_errors(tmp_path):
    tokenizer = build()
    del tokenizer.config["reconstruction"]
    tokenizer.save_pretrained(tmp_path)
    again = VQVAE.from_pretrained(tmp_path)
    assert again.fingerprint() == tokenizer.fingerprint() != build().fingerprint()
    codes = tokenizer.encode(to_float(draw_values(2, 3, 9, 12)))
    assert torch.equal(again.decode(codes), build().decode(codes))
    again.save_pretrained(tmp_path / "again")
    told = json.loads((tmp_path / "again" / "config.json").read_text())
    assert told["fingerprint"] == tokenizer.fingerprint()


def test_what_is_no_term_and_what_does_not_belong_together_is_refused():
    with pytest.raises(InputError, match="`reconstruction` 'l3': choose one of mse, l1, logistic, coupled-logistic, "):
        build("l3")
    with pytest.raises(InputError, match=r"`reconstruction` spectral: for images choose one of mse, l1, .*, mu-law$"):
        build("spectral")
    tokenizer, x = build("logistic"), to_float(draw_values(2, 3, 9, 12))
    codes = tokenizer.encode(x)
    with pytest.raises(InputError, match=r"`codes` of grid 0 have the shape \(2, 3, 3\): those of `x` have \(1, 3, 3"):
        tokenizer.nll(x[:1], codes)
    with pytest.raises(InputError, match=r"`x` has the shape \(2, 1, 9, 12\)"):
        tokenizer.nll(x[:, :1], codes)
    with pytest.raises(InputError, match="`x` holds values from"):
        tokenizer.nll(x * 127.5, codes)
