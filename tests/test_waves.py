"""The tokenizer of sound: µ-law, lengths and places, windows, speakers, and decoders that draw.

Shapes: T samples, t codes.
"""

import math
import warnings

import pytest
import torch
from small_quantizers import SMALL as QUANTIZERS
from small_quantizers import draw_latents, moment

from codegrid import load
from codegrid.codes import Condition, Signal
from codegrid.data.images import ImageBatch, to_float, to_int16
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.pipelines.evaluation.cross_entropy import measure_nats
from codegrid.pipelines.generation.pairing import spoken_by
from codegrid.registry import TABLES
from codegrid.stage1_vqvae import waves
from codegrid.stage1_vqvae.mu_law import SILENCE, from_classes, to_classes
from codegrid.stage1_vqvae.reconstruction import RECONSTRUCTIONS

STRIDES = (3, 2)
HOP = 6
SMALL = {"hidden_channels": 8, "residual_channels": 4, "num_residual_blocks": 1, "strides": STRIDES}
WAVENET = {"decoder": "wavenet", "channels": 6, "skip_channels": 8, "layers_per_cycle": 3, "num_cycles": 1}
each_decoder = pytest.mark.parametrize("decoder", [{}, WAVENET], ids=["transposed", "wavenet"])


def build(length=24, num_classes=0, quantizer="ema", rate=16_000, **options):
    torch.manual_seed(0)
    of_quantizer = QUANTIZERS[quantizer]
    signal = Signal("sound", 1, (length,), rate)
    tokenizer = TABLES["tokenizer"]["wave"](
        signal=signal, quantizer=quantizer, num_classes=num_classes, **SMALL, **of_quantizer, **options
    )
    with torch.no_grad():
        tokenizer.encoder[-1].weight *= 50  # a new encoder's latents all lie beside one entry
        for parameter in tokenizer.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.3)
    return tokenizer.eval()


def sound(count, length):
    return draw_latents(count, 1, length).clamp(-2, 2) / 2


def test_each_class_of_the_mu_law_stands_for_itself_and_a_ramp_is_off_by_half_a_step_at_most():
    classes = torch.arange(256)
    values = from_classes(classes)
    assert torch.equal(to_classes(values), classes) and values.aminmax() == (-1, 1)
    assert to_classes(torch.zeros(1)) == SILENCE and abs(from_classes(torch.tensor(SILENCE))) < 1e-4
    ramp = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    step = values.double().diff()
    found = to_classes(ramp)
    nearest = (ramp - from_classes(found)).abs()
    around = torch.stack([step[(found - 1).clamp_min(0)], step[found.clamp_max(254)]]).amax(0)
    assert (nearest <= 0.52 * around).all()  # halfway in the law is not quite halfway in the wave
    assert to_classes(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_the_mean_of_mu_law_classes_is_the_wave_that_they_are_sure_of():
    term, x = RECONSTRUCTIONS["mu-law"](1, 1.0), sound(2, 5).clamp(-1, 1)
    sure = torch.nn.functional.one_hot(to_classes(x[:, 0]), 256).mT * 100.0
    assert term.outputs == 256 and term.loss(sure, x) < 1e-6
    assert torch.equal(term.image(sure), from_classes(to_classes(x)))
    assert term.loss(torch.zeros(2, 256, 5), x) == pytest.approx(math.log(256))


def test_the_spectral_term_hears_a_delay_less_than_another_pitch_however_loud():
    term, times = RECONSTRUCTIONS["spectral"](1, 0.125), torch.arange(2000) / 16_000
    wave, late, other = (
        torch.sin(2 * math.pi * pitch * times + phase)[None, None] / 2
        for pitch, phase in ((500, 0.0), (500, math.pi), (700, 0.0))
    )
    l1 = RECONSTRUCTIONS["l1"](1, 0.125)
    assert term.loss(wave, wave) == 0 and l1.loss(late, wave) > l1.loss(other, wave)
    assert (term.loss(late, wave) - l1.loss(late, wave)) * 10 < term.loss(other, wave) - l1.loss(other, wave)
    louder = RECONSTRUCTIONS["spectral"](1, 0.125 * 9).loss(other * 3, wave * 3)
    torch.testing.assert_close(louder, term.loss(other, wave))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_quantizer_makes_codes_of_sound_and_learns(quantizer):
    tokenizer, x = build(quantizer=quantizer).train(), sound(3, 24)
    output, codes, losses = tokenizer(x, moment=moment(count=3))
    losses.total.backward()
    tokenizer.after_step(0, 0)
    assert output.shape == x.shape and tuple(grid.shape[1:] for grid in codes) == tuple(
        grid.shape for grid in tokenizer.layout
    )
    assert all(parameter.grad is not None for parameter in tokenizer.encoder.parameters())
    assert tokenizer.eval().decode(tokenizer.encode(x)).shape == x.shape


@each_decoder
def test_sound_of_any_length_comes_back_in_its_own_length(decoder):
    tokenizer = build(**decoder)
    for length in (1, 5, 6, 7, 24, 29) if decoder else range(1, 61):
        x = sound(1, length)
        (codes,) = tokenizer.encode(x)
        assert codes.shape == (1, -(-length // HOP)) and tokenizer.reconstruct(x).shape == x.shape
    assert tokenizer.decode((torch.zeros(2, 4, dtype=torch.int64),)).shape == (2, 1, 24)


@torch.no_grad()
def test_a_code_is_heard_around_its_own_samples_and_a_shift_by_a_code_shifts_the_codes():
    tokenizer = build(60 * HOP).double()
    (codes,) = tokenizer.encode(sound(1, 60 * HOP).double())
    other = codes.clone()
    other[0, 30] = (other[0, 30] + 1) % 8
    heard = (tokenizer.decode((codes,)) != tokenizer.decode((other,)))[0, 0].nonzero().flatten()
    before, after = 30 * HOP - int(heard[0]), int(heard[-1]) - (31 * HOP - 1)
    assert abs(before - after) <= 1 and 0 < before <= tokenizer.reach * HOP
    x = sound(1, 60 * HOP).double()
    shifted = tokenizer.encode(torch.cat([torch.zeros(1, 1, HOP, dtype=torch.float64), x], dim=2))[0]
    inner = slice(tokenizer.reach, 60 - tokenizer.reach)
    assert len(codes.unique()) > 2
    assert torch.equal(tokenizer.encode(x)[0][:, inner], shifted[:, 1:][:, inner])


@torch.no_grad()
def test_the_ends_of_a_clip_sound_like_its_middle():
    tokenizer = build().double()
    for count in (1, 4, 20):
        wave = tokenizer.decode((torch.full((1, count), 3),), (count * HOP,))
        each = wave.view(count, HOP)
        torch.testing.assert_close(each, each[:1].expand(count, HOP), atol=1e-12, rtol=0)


@torch.no_grad()
def test_a_long_clip_in_windows_has_the_codes_and_the_sound_of_the_whole(monkeypatch):
    tokenizer, x = build().double(), sound(2, 100 * HOP + 1).double()
    whole = tokenizer.encode_latents(x)[0], tokenizer.reconstruct(x)
    monkeypatch.setattr(waves, "AT_ONCE", 7 * HOP)
    torch.testing.assert_close(tokenizer.encode_latents(x)[0], whole[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(tokenizer.reconstruct(x), whole[1], atol=1e-12, rtol=0)
    assert tokenizer.encode(x)[0].shape == (2, 101)


@each_decoder
def test_what_comes_of_a_clip_does_not_depend_on_its_batch(decoder):
    tokenizer, x = build(num_classes=3, **decoder), sound(4, 24)
    (codes,) = tokenizer.encode(x)
    assert torch.equal(tokenizer.encode(x[2:3])[0], codes[2:3])
    labels = torch.tensor([0, 1, 2, 1])
    together = tokenizer.decode((codes,), given=Condition(labels), noise=Noise(3, 0, 4))
    alone = tokenizer.decode((codes[2:3],), given=Condition(labels[2:3]), noise=Noise(3, 2, 1))
    torch.testing.assert_close(alone, together[2:3], atol=1e-6, rtol=0)


@each_decoder
def test_the_speaker_is_heard_and_one_that_is_not_known_is_refused(decoder):
    tokenizer, x = build(num_classes=2, **decoder), sound(1, 24)
    for name, table in tokenizer.named_parameters():
        table.data *= 20 if name.endswith("condition.weight") else 1  # a new WaveNet hardly knows its speakers
    codes = tokenizer.encode(x)
    first, second, nobody = (tokenizer.decode(codes, given=Condition(torch.tensor([label]))) for label in (0, 1, -1))
    assert not torch.equal(first, second) and torch.equal(nobody, tokenizer.decode(codes))
    with pytest.raises(InputError, match="`labels`"):
        tokenizer.decode(codes, given=Condition(torch.tensor([2])))


def test_speakers_of_other_data_are_found_by_name_and_strangers_are_nobody():
    tokenizer, labels = build(num_classes=2), torch.tensor([0, 1, 2, -1])
    tokenizer.provenance = {"classes": ["ann", "bob"]}
    given = spoken_by(tokenizer, Condition(labels), ["eve", "bob", "ann"])
    assert given.labels.tolist() == [-1, 1, 0, -1]
    assert spoken_by(build(), Condition(labels), ["eve"]).labels is labels  # it knows no speakers


def test_a_decoder_that_draws_is_given_codes_speaker_and_noise_alone():
    tokenizer = build(**WAVENET)
    codes = tuple(torch.randint(0, 8, (1, 4)) for _ in tokenizer.layout)
    drawn = [tokenizer.decode(codes, noise=Noise(seed, 0, 1)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert tokenizer.draws and set(to_classes(drawn[0]).flatten().tolist()) <= set(range(256))


@torch.no_grad()
def test_the_nats_of_a_clip_are_those_that_training_lowers_and_no_sample_sees_itself_or_later_ones():
    tokenizer, x = build(num_classes=2, **WAVENET).double(), sound(2, 24).double()
    given, codes = Condition(torch.tensor([1, 0])), tokenizer.encode(x)
    nats = tokenizer.nll(x, codes, given)
    loss = tokenizer(x, given).losses.terms["reconstruction_loss"]
    assert nats.shape == (2,) and float(nats.sum()) / 48 == pytest.approx(float(loss))
    assert build().nll(x.float(), codes) is None
    # the same codes for another ending: what is before it costs as much
    ending = x.clone()
    ending[:, :, 20] *= -1
    of_beginning = [tokenizer.nll(each[:, :, :20], codes, given) for each in (x, ending)]
    assert torch.equal(*of_beginning) and not torch.equal(nats, tokenizer.nll(ending, codes, given))


def test_the_nats_of_another_clips_codes_tell_whether_the_decoder_uses_them():
    tokenizer, waves = build(**WAVENET), to_int16(sound(5, 24))
    for parameter in tokenizer.prior.network.of_features.parameters():
        parameter.data *= 30
    found = measure_nats(tokenizer, [ImageBatch(piece, None) for piece in waves.split(2)])
    codes = tokenizer.encode(to_float(waves))
    others = tuple(grid.roll(2, dims=0) for grid in codes)
    for name, these in (("nats", codes), ("swapped_nats", others)):
        assert found[name] == pytest.approx(float(tokenizer.nll(to_float(waves), these).mean()) / 24, rel=1e-5)
    assert found["nats"] != found["swapped_nats"] and found["swapped_nats_error"] > 0
    tokenizer.prior.network.of_features.weight.data.zero_()
    deaf = measure_nats(tokenizer, [ImageBatch(waves, None)])
    assert deaf["nats"] == pytest.approx(deaf["swapped_nats"], abs=1e-6)


@each_decoder
def test_it_is_saved_and_loaded_with_its_decoder(decoder, tmp_path):
    tokenizer, x = build(num_classes=2, **decoder), sound(2, 24)
    tokenizer.provenance = {"classes": ["ann", "bob"]}
    tokenizer.save_pretrained(tmp_path / "t")
    again = load(tmp_path / "t")
    assert again.signal == tokenizer.signal and again.fingerprint() == tokenizer.fingerprint()
    assert torch.equal(again.reconstruct(x), tokenizer.reconstruct(x))
    assert "sound" in (tmp_path / "t" / "README.md").read_text()


def test_on_frozen_codes_only_the_decoder_learns():
    source, x = build(num_classes=2), sound(3, 24)
    source.provenance = {"classes": ["bob", "ann"]}
    tokenizer = build(num_classes=2, frozen_codes=True, **WAVENET)
    tokenizer.provenance = {"classes": ["ann", "bob"]}
    tokenizer.inherit(source)
    assert torch.equal(tokenizer.encode(x)[0], source.encode(x)[0])
    losses = tokenizer.train()(x, Condition(torch.tensor([0, 1, 1])), moment(count=3)).losses
    losses.total.backward()
    tokenizer.after_step(0, 0)
    assert set(losses.terms) == {"reconstruction_loss"}
    assert all(parameter.grad is None for parameter in tokenizer.encoder.parameters())
    assert all(
        parameter.grad is not None for parameter in (*tokenizer.decoder.parameters(), *tokenizer.prior.parameters())
    )
    assert torch.equal(tokenizer.quantizer.codebook, source.quantizer.codebook)


def test_speakers_are_inherited_by_their_names():
    source, tokenizer = build(num_classes=2), build(num_classes=3)
    source.provenance, tokenizer.provenance = {"classes": ["bob", "ann"]}, {"classes": ["ann", "cid", "bob"]}
    fresh = tokenizer.inherit(source)
    table, theirs = tokenizer.decoder.speakers.weight, source.decoder.speakers.weight
    assert torch.equal(table[0], theirs[1]) and torch.equal(table[2], theirs[0])
    assert fresh == ["1 of 3 rows of decoder.speakers.weight"]


def test_previews_are_silent_where_nothing_is_drawn_and_known_samples_keep_whole_codes():
    tokenizer = build()
    codes, drawn = (torch.zeros(1, 4, dtype=torch.int64),), (torch.tensor([[True, True, False, False]]),)
    shown = tokenizer.preview(codes, drawn)
    assert shown[0, 0, :12].any() and not shown[0, 0, 12:].any()
    mask = torch.zeros(24, dtype=torch.bool)
    mask[:13] = True
    assert [sites.tolist() for sites in tokenizer.kept_sites(mask)] == [[True, True, False, False]]


@pytest.mark.parametrize(
    "change,reason",
    [
        ({"strides": ()}, "`strides` of none"),
        ({"strides": (64, 64, 64)}, "`strides` 64 64 64: .* a product of at most 8,192"),
        ({"decoder": "nobody"}, "`decoder` 'nobody': no prior has this name"),
        ({"decoder": "maskgit"}, "`decoder` maskgit: such a prior cannot be conditioned on latents"),
        ({"signal": Signal("image", 1, (8, 8))}, r"needs windows \(samples,\) of one channel"),
        (
            {"reconstruction": "logistic"},
            "`reconstruction` logistic: for sound choose one of mse, l1, mu-law, spectral",
        ),
        ({"layers_per_cycle": 3}, "`layers_per_cycle`"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused(change, reason):
    with pytest.raises(InputError, match=reason):
        TABLES["tokenizer"]["wave"](**{**SMALL, **change})


@pytest.mark.parametrize("x", [torch.zeros(2, 24), torch.zeros(1, 2, 24), torch.full((1, 1, 24), 3.0)], ids=str)
def test_what_is_not_sound_is_refused(x):
    with pytest.raises(InputError, match="`x`"):
        build().encode(x)


def test_a_decoder_that_draws_must_also_learn_to_do_without_a_speaker():
    with pytest.raises(InputError, match="`label_dropout` 0: a decoder must also learn to draw without a speaker"):
        build(num_classes=2, **WAVENET, label_dropout=0.0)
    assert build(**WAVENET, label_dropout=0.0).draws


def test_sound_that_is_never_below_0_is_no_image_in_0_to_1():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build().encode(sound(1, 24).abs())
    with pytest.raises(InputError, match=r"must be in \[-1, 1\]$"):
        build().encode(sound(1, 24) * 999)
