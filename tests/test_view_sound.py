"""The viewer of sound: players, waveforms, spectrograms and codes, other speakers, uploads and downloads."""

import base64
import io
import re
import zipfile

import pytest
import soundfile
import torch
from test_waves import HOP, WAVENET, build
from written_sound import RATE, tone, write_clip, write_speech

from codegrid import TwoStagePipeline
from codegrid.codes import Condition, Signal
from codegrid.errors import InputError
from codegrid.stage2_prior.wavenet.network import WaveNet

pytest.importorskip("gradio")
from codegrid.pipelines.viewer import actions
from codegrid.pipelines.viewer.answers import Answers
from codegrid.pipelines.viewer.examples import find_examples
from codegrid.pipelines.viewer.media import medium_of
from codegrid.pipelines.viewer.page import build_page

LENGTH = 40 * HOP


def make(**options):
    """A tokenizer of two speakers, and a prior over its codes."""
    tokenizer = build(LENGTH, num_classes=2, **options)
    tokenizer.provenance = {"classes": ["ann", "bob"]}
    prior = WaveNet(tokenizer.layout, num_classes=2, channels=4, layers_per_cycle=2).eval()
    prior.provenance = {"tokenizer_fingerprint": tokenizer.fingerprint(), "classes": ["ann", "bob"]}
    return tokenizer, TwoStagePipeline(tokenizer, prior)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    tokenizer, pipeline = make()
    place = write_speech(tmp_path_factory.mktemp("voices"), texts=4, seconds=0.02)
    return Answers(tokenizer, pipeline, find_examples(tokenizer, pipeline, None, "speech", str(place), count=4))


def heard(words):
    """The waves (T,) of the players in some HTML."""
    links = re.findall(r'<audio controls src="data:audio/wav;base64,([^"]*)"', words)
    read = [soundfile.read(io.BytesIO(base64.b64decode(link)), dtype="float32") for link in links]
    assert all(rate == RATE for _, rate in read)
    return [torch.from_numpy(wave) for wave, _ in read]


def test_a_recording_and_its_reconstruction_are_played_and_seen_with_the_codes_beneath(answers):
    encoded, before, after, *_, said, words, speaker, label = answers.pick(0)
    assert speaker == label == int(answers.examples.labels[0]) and encoded.speaker == speaker
    for shown, wave in ((before, encoded.image), (after, encoded.reconstruction), (said, encoded.reconstruction)):
        (played,) = heard(shown)
        torch.testing.assert_close(played, wave[0, 0], atol=1e-4, rtol=0)
        assert all(part in shown for part in ('class="waveform"', 'class="spectrogram"', 'class="codes"'))
    assert "held-out recordings" in answers.examples.source and f"Input: {['ann', 'bob'][speaker]}" in before
    given = Condition(torch.tensor([speaker]))
    assert torch.equal(encoded.reconstruction, answers.tokenizer.decode(encoded.codes, given=given).clamp(-1, 1))
    assert "PSNR" not in words


def test_another_speaker_says_the_same_codes_and_edits_stay(answers):
    encoded, *_ = answers.pick(0)
    edited = answers.edit(encoded, 0, 0, 3, (int(encoded.codes[0][0, 3]) + 1) % 8)[0]
    converted, shown, words = answers.speak(edited, 1 - edited.speaker)
    expected = answers.tokenizer.decode(edited.codes, given=Condition(torch.tensor([1 - edited.speaker])))
    torch.testing.assert_close(heard(shown)[0], expected[0, 0].clamp(-1, 1), atol=1e-4, rtol=0)
    assert "said by " + ["ann", "bob"][converted.speaker] in shown and "1 of 40 codes edited" in words
    own = answers.tokenizer.decode(edited.codes, given=Condition(torch.tensor([edited.speaker])))
    assert not torch.equal(expected, own)
    content = base64.b64decode(answers.download_image(converted).partition(",")[2])
    saved, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    torch.testing.assert_close(torch.from_numpy(saved), heard(shown)[0])
    assert [name for name, _ in answers.speaker_choices()] == ["ann", "bob", "nobody in particular"]


def test_samples_are_played_and_saved_as_wav_files(answers):
    *_, (shown, drawn, progress) = answers.sample([0, 1], 3, 1.0, 0, 1.0, 1.0, 0)
    assert len(heard(shown)) == 3 and "sample 2, bob" in shown and progress == "100% drawn"
    torch.testing.assert_close(heard(shown)[1], drawn.images[1, 0], atol=1e-4, rtol=0)
    archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(answers.download_sheet(drawn).partition(",")[2])))
    assert archive.namelist() == ["00000.wav", "00001.wav", "00002.wav"]


def test_samples_are_said_by_the_speaker_whose_name_the_prior_knows():
    tokenizer, _ = make()
    prior = WaveNet(tokenizer.layout, num_classes=1, channels=4, layers_per_cycle=2).eval()
    prior.provenance = {"tokenizer_fingerprint": tokenizer.fingerprint(), "classes": ["bob"]}  # 0 here, and 1 there
    pipeline = TwoStagePipeline(tokenizer, prior)
    *_, last = actions.sample(pipeline, 2, ["bob"], 3)
    assert torch.equal(last.images, pipeline.sample(2, labels=["bob"], seed=3).images)


def test_a_decoder_that_draws_is_heard_at_the_end_only():
    tokenizer, pipeline = make(**WAVENET)
    answers = Answers(tokenizer, pipeline, find_examples(tokenizer, None, None, count=1))
    *unfinished, last = list(actions.sample(pipeline, 1))
    assert not any(partial.images.any() for partial in unfinished) and last.images.any()
    assert "Reconstruction, drawn" in answers.pick(0)[2]
    assert answers.examples.source == "recordings made of random codes"


def test_an_upload_is_brought_to_the_rate_and_length_and_what_is_no_sound_is_named(answers, tmp_path):
    medium = medium_of(answers.tokenizer.signal)
    wave = medium.read(write_clip(tmp_path / "a.wav", tone(300, 0.1, 8000), 8000))
    assert wave.shape == (1, 1, LENGTH) and wave.any()
    short = medium.read(write_clip(tmp_path / "b.wav", tone(300, 0.005)))
    assert short.shape == (1, 1, LENGTH) and not short[..., 80:].any()
    (tmp_path / "c.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"^c\.wav is not a readable sound file"):
        medium.read(tmp_path / "c.wav")
    shown = answers.upload(str(tmp_path / "a.wav"))
    assert shown[0].speaker == -1 and "said by nobody in particular" in shown[8]


def test_a_clip_is_continued_after_its_first_codes(answers):
    encoded = answers.pick(1)[0]
    *_, (shown, drawn, _) = answers.complete(encoded, 30, 2, 1, 1.0, 0, 1.0, 1.0, 0)
    assert len(heard(shown)) == 2 and torch.equal(drawn.codes[0][:, :30], encoded.codes[0][:, :30].expand(2, -1))


def test_a_page_of_sound_is_built_in_the_words_of_sound(answers):
    assert answers.rows_to_keep() == range(1, 40) and not answers.fills_any()
    page = build_page(answers.tokenizer, answers.pipeline, answers.examples, "voices")
    words = str(page.get_config_file())
    assert "sounds of 0.01 seconds at 16,000 Hz" in words.replace("0.02", "0.01") and "Upload a recording" in words
    assert all(part in words for part in ("New sounds", "Speaker", "The first of the codes above", "Codes to keep"))


def test_a_signal_that_the_viewer_cannot_show_is_refused():
    with pytest.raises(InputError, match="is one of codes, but the viewer shows image and sound only"):
        medium_of(Signal("codes", 1, (3, 3)))


def test_a_waveform_spans_its_lowest_and_highest_samples():
    wave = torch.zeros(1, 1, 480)
    wave[0, 0, 100], wave[0, 0, 101] = 1.0, -0.5
    shown = medium_of(Signal("sound", 1, (480,), RATE)).figure(wave, "a <b>", torch.zeros(3, 1, 8))
    assert "M50.5 1.0V75.5" in shown and "M0.5 50.0V51.0" in shown and "a &lt;b&gt;" in shown and "<b>" not in shown
