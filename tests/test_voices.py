"""Recordings in another speaker's voice: from Python and by the command."""

import json

import numpy as np
import pytest
import soundfile
import torch
from test_waves import HOP, WAVENET, build, each_decoder, sound
from written_sound import RATE, content_of, tone, write_clip, write_package

from codegrid.codes import Condition, Signal
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.pipelines.convert import Convert
from codegrid.pipelines.generation.voices import convert, convert_voice
from codegrid.stage1_vqvae import waves


def voices(**options):
    tokenizer = build(num_classes=2, **options)
    for name, table in tokenizer.named_parameters():
        table.data *= 20 if name.endswith("condition.weight") else 1  # a new WaveNet hardly knows its speakers
    tokenizer.provenance = {"classes": ["ann", "bob"]}
    return tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a tokenizer with a decoder that draws."""
    folder = tmp_path_factory.mktemp("voices")
    voices(**WAVENET).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def recordings(tmp_path):
    """Three recordings of different lengths, one of them shorter than a code, by strangers."""
    for place, seconds in (("eve/a.wav", 0.004), ("eve/b.wav", 3 / RATE), ("joe/a.wav", 0.01)):
        write_clip(tmp_path / "in" / place, tone(500, seconds) - 0.01)
    return tmp_path / "in"


def clips():
    return [sound(1, length)[0, 0].clamp(-1, 1) for length in (40, 5, 24)]


@each_decoder
def test_a_clip_in_another_voice_has_its_length_and_its_codes_and_is_what_it_would_be_alone(decoder):
    tokenizer, some = voices(**decoder), clips()
    found = convert_voice(tokenizer, some, "bob", seed=3)
    assert [each.shape for each in found] == [each.shape for each in some]
    for number, (wave, own) in enumerate(zip(some, found, strict=True)):
        codes, given = tokenizer.encode(wave[None, None]), Condition(torch.tensor([1]))
        whole = tokenizer.decode(codes, (len(wave),), given, Noise(3, number, 1))[0, 0]
        (alone,) = convert_voice(tokenizer, [wave], "bob", seed=3, first_index=number)
        torch.testing.assert_close(own, whole, atol=1e-6, rtol=0)
        torch.testing.assert_close(own, alone, atol=1e-6, rtol=0)
    for wave, own in zip(convert_voice(tokenizer, some, "bob", seed=3, batch_size=2), found, strict=True):
        torch.testing.assert_close(wave, own, atol=1e-6, rtol=0)
    others = convert_voice(tokenizer, some, "ann", seed=3)
    assert not any(torch.equal(*pair) for pair in zip(found, others, strict=True))


def test_a_decoder_that_draws_draws_by_the_seed_and_another_does_not():
    for tokenizer in (voices(), voices(**WAVENET)):
        first, second = (convert_voice(tokenizer, clips(), "ann", seed)[0] for seed in (0, 1))
        assert torch.equal(first, second) != tokenizer.draws


def test_a_long_clip_is_converted_in_windows(monkeypatch):
    tokenizer, wave = voices().double(), sound(1, 100 * HOP + 1)[0, 0].double().clamp(-1, 1)
    (whole,) = convert_voice(tokenizer, [wave], "ann")
    monkeypatch.setattr(waves, "AT_ONCE", 7 * HOP)
    torch.testing.assert_close(convert_voice(tokenizer, [wave], "ann")[0], whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "make,speaker,reason",
    [
        (voices, "eve", "`speaker` 'eve': this tokenizer knows only ann, bob: give one of these"),
        (build, "ann", "`tokenizer` knows no speakers: give one that was trained on a folder for each speaker"),
    ],
    ids=["unknown", "nobody"],
)
def test_a_speaker_who_is_not_known_is_refused_by_name(make, speaker, reason):
    with pytest.raises(InputError, match=reason):
        convert_voice(make(), clips(), speaker)


def test_clips_of_another_form_are_refused_and_not_cut():
    for wave in (clips()[0][None, None], clips()[0].numpy(), [0.0, 0.1]):
        with pytest.raises(InputError, match=r"`waves`: each must be a tensor \(T,\)"):
            convert_voice(voices(), [wave], "ann")


def run(saved, place, output, **more):
    convert(Convert(tokenizer=saved, input=str(place), speaker="bob", output=str(output), device="cpu", **more))
    return {path.name: soundfile.read(path, dtype="int16")[0] for path in sorted((output / "sounds").iterdir())}


def test_a_folder_becomes_files_of_the_same_lengths_and_a_stopped_run_makes_what_is_missing(
    saved, recordings, tmp_path
):
    found = run(saved, recordings, tmp_path / "out")
    assert {name: len(wave) for name, wave in found.items()} == {
        "00000-a.wav": 64,
        "00001-b.wav": 3,
        "00002-a.wav": 160,
    }
    assert json.loads((tmp_path / "out" / "files.json").read_text()) == ["eve/a.wav", "eve/b.wav", "joe/a.wav"]
    assert (tmp_path / "out" / "sounds.png").stat().st_size > 0
    (tmp_path / "out" / "run.json").write_text((tmp_path / "out" / "run.json").read_text().replace("true", "false"))
    (tmp_path / "out" / "sounds" / "00002-a.wav").unlink()
    write_clip(tmp_path / "out" / "sounds" / "00001-b.wav", tone(500, 0.001))  # of another length
    again = run(saved, recordings, tmp_path / "out")
    assert all(np.array_equal(again[name], wave) for name, wave in found.items())
    with pytest.raises(InputError, match="was made with seed 0, not 1"):
        run(saved, recordings, tmp_path / "out", seed=1)


def test_a_single_file_and_a_package_are_converted_too(saved, recordings, tmp_path):
    (alone,) = run(saved, recordings / "eve" / "a.wav", tmp_path / "file").values()
    package = write_package(tmp_path / "voices.deb", {"usr/a.wav": content_of(tone(500, 0.004) - 0.01)})
    (same,) = run(saved, package, tmp_path / "package").values()
    assert len(alone) == 64 and np.array_equal(alone, same)


def test_recordings_that_are_not_there_or_cannot_be_read_are_refused_or_left_out(saved, recordings, tmp_path):
    with pytest.raises(InputError, match=r"`input` .*none: there is no such file or folder"):
        run(saved, tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no sound in .*empty: it needs files such as \.wav"):
        run(saved, tmp_path / "empty", tmp_path / "out")
    (recordings / "eve" / "b.wav").write_bytes(b"odd")
    with pytest.raises(InputError, match=r"b\.wav is not a readable sound file .* `skip_unreadable`"):
        run(saved, recordings, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert list(run(saved, recordings, tmp_path / "out", skip_unreadable=True)) == ["00000-a.wav", "00001-a.wav"]


def test_the_command_names_what_is_missing(saved, recordings, run_script, tmp_path):
    flags = ("--tokenizer", saved, "--input", recordings, "--output", tmp_path / "out")
    done = run_script("convert", *flags)
    assert done.code == 2 and "--speaker: give the name of a speaker" in done.err
    done = run_script("convert", *flags, "--speaker", "eve")
    assert done.code == 2 and "--speaker 'eve': this tokenizer knows only ann, bob" in done.err
    done = run_script("convert", *flags, "--speaker", "ann", "--dry-run")
    assert done.code == 0 and "3 recordings" in done.out and not (tmp_path / "out").exists()


def test_a_tokenizer_of_images_converts_nothing(small_run, recordings, tmp_path):
    with pytest.raises(InputError, match="`tokenizer` is one of images: give one of sound"):
        run(str(small_run / "tokenizer"), recordings, tmp_path / "out")
    assert Signal().kind == "image"
