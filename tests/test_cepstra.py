"""The tokenizer of sound that reads cepstra, and the head that tells them from its codes."""

import math

import pytest
import torch
from small_quantizers import moment
from test_waves import HOP, SMALL, build, sound

from codegrid import load
from codegrid.codes import Condition, Signal
from codegrid.errors import InputError
from codegrid.registry import TABLES
from codegrid.stage1_vqvae import waves
from codegrid.stage1_vqvae.cepstra import Cepstra, CepstralHead

RATES = [16_000, 200]  # a frame for each code, and one for each step of the first stride


def vowel(pitch, peaks, count=4000):
    """A wave of a pitch in hertz with a spectrum that has peaks."""
    times = torch.arange(count) / 16_000
    tones = torch.arange(1, 8000 // pitch) * pitch
    loud = sum(torch.exp(-(((tones - peak) / 150) ** 2)) for peak in peaks) + 0.01
    return (loud[:, None] * torch.cos(2 * math.pi * tones[:, None] * times)).sum(0)[None, None]


def test_cepstra_tell_vowels_apart_and_hardly_their_pitch():
    cepstra = Cepstra(16_000, (5, 4, 4, 4, 2))
    of_a, higher, of_i = (
        cepstra(vowel(pitch, peaks))[0, :, 5:-5].mean(1)
        for pitch, peaks in ((100, (750, 1200)), (140, (750, 1200)), (100, (300, 2300)))
    )
    assert cepstra.step == 80 and (of_a - higher).norm() * 3 < (of_a - of_i).norm()


def test_frames_lie_around_their_own_samples_so_a_wave_backwards_has_them_backwards():
    cepstra, x = Cepstra(16_000, (80, 4)), sound(1, 4000)
    forwards, backwards = cepstra(x), cepstra(x.flip(2)).flip(2)
    assert (forwards - backwards).norm() < 0.05 * (forwards - forwards.roll(1, 2)).norm()


@torch.no_grad()
@pytest.mark.parametrize("rate", RATES)
def test_codes_of_cepstra_do_not_tell_how_loud_a_wave_is_nor_its_sign(rate):
    tokenizer, x = build(240, rate=rate, encoder_input="cepstra"), sound(3, 240)
    (latents,) = tokenizer.encode_latents(x)
    for changed in (x / 4, -x):
        apart = (tokenizer.encode_latents(changed)[0] - latents).norm()
        assert apart < 1e-5 * (latents - latents.mean(2, keepdim=True)).norm()
        assert torch.equal(tokenizer.encode(changed)[0], tokenizer.encode(x)[0])
        assert (build(240).encode_latents(changed)[0] - build(240).encode_latents(x)[0]).norm() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("rate", RATES)
def test_a_long_clip_in_windows_has_the_latents_of_the_whole_and_they_move_with_it(rate, monkeypatch):
    tokenizer, x = build(240, rate=rate, encoder_input="cepstra").double(), sound(2, 200 * HOP).double()
    (whole,) = tokenizer.encode_latents(x)
    inner = slice(tokenizer.reach, 200 - tokenizer.reach)
    (late,) = tokenizer.encode_latents(torch.cat([torch.zeros(2, 1, HOP, dtype=torch.float64), x], dim=2))
    torch.testing.assert_close(late[..., 1:][..., inner], whole[..., inner], atol=1e-12, rtol=0)
    monkeypatch.setattr(waves, "AT_ONCE", 7 * HOP)
    torch.testing.assert_close(tokenizer.encode_latents(x)[0], whole, atol=1e-12, rtol=0)


def test_it_is_saved_and_loaded_with_what_its_encoder_reads(tmp_path):
    tokenizer, x = build(encoder_input="cepstra", cepstral_weight=2.0), sound(2, 24)
    tokenizer.save_pretrained(tmp_path / "t")
    again = load(tmp_path / "t")
    assert again.fingerprint() == tokenizer.fingerprint() and again.config == tokenizer.config
    assert torch.equal(again.reconstruct(x), tokenizer.reconstruct(x))
    assert torch.equal(again.encode_latents(x)[0], tokenizer.encode_latents(x)[0])


@pytest.mark.parametrize("reads", ["wave", "cepstra"])
def test_the_head_teaches_the_encoder_by_its_weight_unless_codes_are_frozen(reads):
    tokenizer, x = build(24, encoder_input=reads, cepstral_weight=2.0).train(), sound(3, 24)
    terms = tokenizer(x, moment=moment(count=3)).losses.terms
    terms["cepstral_loss"].backward()
    assert all(parameter.grad is not None for parameter in tokenizer.encoder.parameters())
    halves = [
        build(24, cepstral_weight=weight)(x, Condition(lengths=torch.tensor([24, 12, 6]))).losses.terms
        for weight in (2.0, 1.0)
    ]
    torch.testing.assert_close(halves[0]["cepstral_loss"], 2 * halves[1]["cepstral_loss"])
    frozen = build(24, cepstral_weight=2.0, frozen_codes=True)
    assert "cepstral_loss" not in frozen(x).losses.terms


@torch.no_grad()
def test_the_head_compares_each_vector_with_the_frames_of_its_own_samples():
    head = CepstralHead(15, 16_000, (80, 4))
    wanted = head.cepstra(sound(2, 6 * 320)).unflatten(2, (6, 4)).mean(3)
    head.layer.weight.copy_(torch.eye(15)[..., None])
    head.layer.bias.zero_()
    x, lengths = sound(2, 6 * 320), torch.tensor([6, 4])
    assert head(wanted, x, None) < 1e-9
    other = wanted.clone()
    other[1, :, 4:] += 1
    assert head(other, x, lengths) < 1e-9
    assert float(head(other, x, None)) == pytest.approx(2 * 15 / 12, rel=1e-4)


@pytest.mark.parametrize(
    "change,reason",
    [
        ({"encoder_input": "noise"}, "`encoder_input`"),
        ({"cepstral_weight": -1.0}, "`cepstral_weight` -1"),
        ({"encoder_input": "cepstra"}, "`signal` has no rate"),
        ({"cepstral_weight": 1.0}, "`signal` has no rate"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused(change, reason):
    signal = Signal("sound", 1, (24,), None if "rate" in reason else 16_000)
    with pytest.raises(InputError, match=reason):
        TABLES["tokenizer"]["wave"](signal=signal, **SMALL, **change)
