"""What codes of speech tell: phonemes, speakers, and what they are worth to a decoder that draws."""

import json
import math

import numpy as np
import pytest
import torch
from test_waves import WAVENET, build, sound
from written_sound import RATE, tone, write_clip

from codegrid import load
from codegrid.codes import HIDDEN, Condition, Grid, Moment
from codegrid.data.images import ImageBatch, to_float, to_int16
from codegrid.data.sound import Clip
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation.clip_codes import ClipCodes, encode_clips
from codegrid.pipelines.evaluation.cross_entropy import measure_nats
from codegrid.pipelines.evaluation.likelihood_bound import DecoderLikelihood
from codegrid.pipelines.evaluation.phonemes import measure_phonemes, pairs_of, phones_of, score
from codegrid.pipelines.evaluation.run import evaluate
from codegrid.pipelines.evaluation.speaker_probe import probe_speakers
from codegrid.stage1_vqvae.mu_law import to_classes

CODE_RATE = 25.0
PHONES = ("pau", "a", "b", "c")


def utterances(count, seed, noise=0.2, length=50, own_codes=False):
    """Clips whose codes are the phone's number, now and then another; or each code another one."""
    random, found = np.random.default_rng(seed), []
    for clip in range(count):
        phones = random.choice(len(PHONES), length // 2, p=(0.4, 0.3, 0.2, 0.1)).repeat(2)  # of two codes each
        segments = tuple(((place + 1) / CODE_RATE, PHONES[phone]) for place, phone in enumerate(phones))
        wrong = random.random(length) < noise
        codes = np.where(wrong, random.integers(0, 4, length), phones)
        codes = (seed * count + clip) * length + np.arange(length) if own_codes else codes
        found.append(ClipCodes(Clip(f"{clip}", np.zeros(1), segments=segments), torch.tensor(codes)[:, None]))
    return found


def test_a_code_has_the_phone_in_its_middle_and_none_beyond_the_last():
    clip = Clip("a", np.zeros(1), segments=((0.06, "a"), (0.1, "b")))
    assert phones_of(clip, 4, CODE_RATE) == ["a", "b", None, None]  # at 0.02, 0.06, 0.10 and 0.14 s
    assert phones_of(clip, 3, CODE_RATE, shift=-1) == [None, "a", "b"]
    assert pairs_of([ClipCodes(Clip("b", np.zeros(1)), torch.zeros(3, 1))], CODE_RATE) == []


def test_codes_tell_phonemes_with_and_without_pauses_each_beside_the_commonest_one():
    train, test = utterances(20, 0), utterances(10, 1)
    found = measure_phonemes(train, test, CODE_RATE)
    assert found["phoneme_accuracy"] == pytest.approx(0.85, abs=0.03) and found["phoneme_frames"] == 500
    assert found["commonest_phoneme"] == pytest.approx(0.4, abs=0.06)
    pairs = pairs_of(test, CODE_RATE)
    spoken = [phone for _, phone in pairs if phone != "pau"]
    assert found["phoneme_frames_without_pauses"] == len(spoken)
    assert found["commonest_phoneme_without_pauses"] == spoken.count("a") / len(spoken)
    assert found["commonest_phoneme"] == pytest.approx(1 - len(spoken) / len(pairs))


def test_accuracy_is_highest_where_codes_and_phones_are_in_step():
    by_shift = measure_phonemes(utterances(20, 0), utterances(10, 1), CODE_RATE)["phoneme_accuracy_by_shift"]
    assert max(by_shift, key=by_shift.get) == "0" and list(by_shift) == ["-3", "-2", "-1", "0", "1", "2", "3"]


def test_phones_of_other_utterances_are_told_no_better_than_by_the_commonest_one():
    parts = []
    for seed in (0, 1):
        found = utterances(40, seed)
        shifted = [*found[1:], found[0]]
        parts.append([ClipCodes(other.clip, own.codes) for own, other in zip(found, shifted, strict=True)])
    right, commonest, frames = score(*(pairs_of(part, CODE_RATE) for part in parts))
    assert abs(right - commonest) <= 3 * math.sqrt(commonest * (1 - commonest) / frames)


def test_a_code_for_each_frame_tells_nothing_of_others():
    right, commonest, _ = score(*(pairs_of(utterances(10, seed, own_codes=True), CODE_RATE) for seed in (0, 1)))
    assert right == commonest
    with pytest.raises(InputError, match="`phonemes`: both parts need recordings with phones"):
        score([], [((0,), "a")])


def spoken(count, seed, tells):
    """Clips of two speakers, with codes of which those up to `tells` are one speaker's alone."""
    random = np.random.default_rng(seed)
    speakers = random.choice(["ann", "bob"], count, p=(0.6, 0.4))
    codes = [random.integers(0, 8, (30, 1)) for _ in speakers]
    codes = [np.where(own < tells, 0 if name == "ann" else 1, own) for own, name in zip(codes, speakers, strict=True)]
    return [
        ClipCodes(Clip("", np.zeros(1), str(name)), torch.from_numpy(own))
        for own, name in zip(codes, speakers, strict=True)
    ]


def test_the_speaker_is_told_from_codes_that_hold_the_voice_and_else_hardly():
    layout = (Grid((30,), 8),)
    heard = probe_speakers(spoken(200, 0, 2), spoken(100, 1, 2), layout, ["ann", "bob"])
    assert heard["speaker_accuracy"] > 0.95 and heard["commonest_speaker"] == pytest.approx(0.6, abs=0.15)
    silent = probe_speakers(spoken(200, 0, 0), spoken(100, 1, 0), layout, ["ann", "bob"])
    assert silent["speaker_accuracy"] < silent["commonest_speaker"] + 0.1


def listening(**options):
    """A tokenizer with a decoder that draws, and hears its codes and speakers."""
    tokenizer = build(num_classes=2, **WAVENET, **options)
    tokenizer.prior.network.of_features.weight.data *= 30
    tokenizer.prior.network.condition.weight.data *= 20
    tokenizer.provenance = {"classes": ["ann", "bob"]}
    return tokenizer


@torch.no_grad()
def test_nats_are_told_without_codes_and_with_other_speakers():
    tokenizer, waves = listening(), to_int16(sound(6, 24))
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    batches = [ImageBatch(waves[rows], labels[rows]) for rows in (slice(0, 4), slice(4, 6))]
    found = measure_nats(tokenizer, batches, ["ann", "bob"], every=True)
    x = to_float(waves)
    codes = tokenizer.encode(x)
    nothing, nobody = tuple(torch.full_like(grid, HIDDEN) for grid in codes), torch.full_like(labels, -1)
    given = {
        "nats": (codes, labels),
        "swapped_nats": (tuple(grid.roll(3, dims=0) for grid in codes), labels),
        "hidden_nats": (nothing, labels),
        "swapped_speaker_nats": (codes, 1 - labels),
        "hidden_speaker_nats": (codes, nobody),
    }
    each = {name: tokenizer.nll(x, grids, Condition(who)) / 24 for name, (grids, who) in given.items()}
    for name, nats in each.items():
        assert found[name] == pytest.approx(float(nats.mean()), rel=1e-5)
    silent = Condition(labels, features=(torch.zeros(6, 8, 24),))  # what the decoder itself is given of no codes
    (of_prior,) = tokenizer.prior.nll((to_classes(x[:, 0]),), silent)
    torch.testing.assert_close(each["hidden_nats"], of_prior.double().mean(1), check_dtype=False)
    gaps = (each["hidden_nats"] - each["nats"]).double()
    assert found["hidden_nats_error"] == pytest.approx(float(gaps.std() / 6**0.5), rel=1e-4)
    assert len({round(found[name], 6) for name in given}) == len(given)
    assert found["rate_nats"] == pytest.approx(4 * math.log(8) / 24)
    some = measure_nats(tokenizer, batches, ["ann", "bob"])
    assert some["nats"] == found["nats"] and "hidden_nats" not in some
    assert "hidden_nats" not in measure_nats(listening(code_dropout=0.0), batches, ["ann", "bob"], every=True)


def test_in_training_some_windows_are_without_codes_and_teach_the_encoder_nothing():
    tokenizer, x = listening(code_dropout=0.5).train(), sound(16, 24)
    moment = Moment(0, 10, Noise(0, 0, 16))
    hidden = moment.noise.uniforms("code dropout") < 0.5
    assert 0 < hidden.sum() < 16
    latents = []
    tokenizer.quantizer.register_forward_pre_hook(lambda _, inputs: latents.append(inputs[0]))
    term = tokenizer(x, moment=moment).losses.terms["reconstruction_loss"]
    (gradient,) = torch.autograd.grad(term, latents)
    assert torch.equal(gradient.flatten(1).any(1), ~hidden)


@torch.no_grad()
def test_the_likelihood_of_a_decoder_is_that_given_who_speaks():
    tokenizer, waves, given = listening(), to_int16(sound(4, 24)), Condition(torch.tensor([0, 1, 1, 0]))
    likelihood, codes = DecoderLikelihood(tokenizer, None, {}), tokenizer.encode(to_float(waves))
    likelihood.add(waves, codes, torch.empty(0), given)
    expected = tokenizer.nll(to_float(waves), codes, given)
    assert likelihood.bits_per_image == pytest.approx(float(expected.mean()) / math.log(2))
    assert not torch.allclose(expected, tokenizer.nll(to_float(waves), codes))


@pytest.fixture
def labelled(tmp_path):
    """Twelve recordings by two speakers, half a high tone and half a low one, which their label files call i and u."""
    for speaker, loudness in (("ann", 0.5), ("bob", 0.3)):
        for text in range(12):
            wave = np.concatenate([tone(pitch, 0.02, loudness=loudness) for pitch in (200 + text, 3000 + text)])
            path = write_clip(tmp_path / "voices" / speaker / f"{text}.wav", wave)
            path.with_suffix(".lab").write_text("#\n0.02 100 u\n0.04 100 i\n")
    return tmp_path / "voices"


def test_evaluate_measures_phonemes_and_speakers(labelled, tmp_path, run_script):
    tokenizer = listening()
    tokenizer.save_pretrained(tmp_path / "t")
    flags = {"tokenizer": str(tmp_path / "t"), "dataset": "speech", "data_root": str(labelled), "device": "cpu"}
    found = evaluate(Evaluate(**flags, output=str(tmp_path / "figures"), phonemes=True))
    assert found["phoneme_frames"] == 2 * 107 and 0 < found["commonest_phoneme"] <= found["phoneme_accuracy"] <= 1
    assert found["commonest_speaker"] == 0.5 and 0 <= found["speaker_accuracy"] <= 1
    assert found["hidden_nats"] > 0 and found["measured_on"]["phoneme_accuracy"]["codes_per_second"] == RATE / 6
    assert json.loads((tmp_path / "figures" / "metrics.json").read_text())["phoneme_accuracy"] > 0
    clips = [Clip("a", to_int16(sound(1, 29))[0, 0].numpy())]
    assert encode_clips(load(tmp_path / "t"), clips)[0].codes.shape == (5, 1)
    done = run_script("evaluate", *(word for name, value in flags.items() for word in (f"--{name}", value)),
                      "--phonemes", "--split", "train", "--output", tmp_path / "other")  # fmt: skip
    assert done.code == 2 and "--phonemes is fitted on the training part: measure it on the test part" in done.err


def test_phonemes_are_for_sound_with_phones(small_run, labelled, tmp_path):
    with pytest.raises(InputError, match="`phonemes` needs a single tokenizer of sound"):
        evaluate(Evaluate(tokenizer=(str(small_run / "tokenizer"),), phonemes=True, output=str(tmp_path / "f")))
    for path in labelled.rglob("*.lab"):
        path.unlink()
    listening().save_pretrained(tmp_path / "t")
    settings = Evaluate(
        tokenizer=(str(tmp_path / "t"),), dataset="speech", data_root=str(labelled), phonemes=True,
        output=str(tmp_path / "f"), device="cpu",
    )  # fmt: skip
    with pytest.raises(InputError, match="`phonemes`: both parts need recordings with phones"):
        evaluate(settings)
