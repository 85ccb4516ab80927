"""Recordings as data: rates and channels, speakers, texts and phones, packages, windows, and what is left out."""

import os

import numpy as np
import pytest
import torch
from written_sound import RATE, content_of, tone, write_clip, write_package, write_speech

from codegrid.data import recordings, sound_files
from codegrid.data.images import to_float, to_int16
from codegrid.data.resampling import resample
from codegrid.data.sound import Clip, SoundDataset
from codegrid.data.sources import load_images
from codegrid.errors import InputError


def load(root, split="all", **options):
    return load_images("speech", root, split, **options)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 128000, 44099])
def test_a_tone_keeps_its_pitch_its_loudness_and_its_place_at_every_rate(rate):
    heard = resample(torch.from_numpy(tone(1000, 0.25, rate))[None], rate, RATE)[0]
    assert abs(len(heard) - 0.25 * RATE) <= 1
    middle = slice(200, len(heard) - 200)  # silence before and after bends the ends
    expected = torch.from_numpy(tone(1000, 1.0))[: len(heard)]
    torch.testing.assert_close(heard[middle], expected[middle], atol=2e-3, rtol=0)


def test_what_a_lower_rate_cannot_hold_is_silenced_and_not_folded_back():
    assert resample(torch.from_numpy(tone(15_000, 0.2, 44100))[None], 44100, RATE)[0, 200:-200].abs().max() < 1e-3


@pytest.mark.parametrize(
    "ending,channels,subtype",
    [("wav", 2, "PCM_16"), ("wav", 1, "FLOAT"), ("flac", 1, "PCM_24"), ("ogg", 2, "VORBIS"), ("wav", 1, "PCM_U8")],
)
def test_every_kind_of_file_gives_the_same_wave_in_mono(ending, channels, subtype, tmp_path):
    wave = tone(440, 0.2)
    both = np.stack([wave * 1.5, wave * 0.5], axis=1)[:, :channels] if channels == 2 else wave
    write_clip(tmp_path / f"a.{ending}", both, subtype=subtype)
    (clip,) = load(tmp_path).clips
    assert clip.wave.dtype == np.int16 and len(clip.wave) == len(wave)
    assert np.abs(clip.wave / 32767 - wave)[200:-200].max() < 0.04


@pytest.mark.parametrize("rate,is_read", [(1, False), (999, False), (1000, True), (768_000, True), (768_001, False)])
def test_a_rate_out_of_any_sense_makes_a_file_unreadable(rate, is_read, tmp_path):
    write_clip(tmp_path / "a.wav", tone(100, 800 / rate, rate), rate)
    if is_read:
        assert len(load(tmp_path).clips) == 1
    else:
        with pytest.raises(InputError, match=rf"a\.wav claims {rate:,} samples a second: fix or remove it, or leave"):
            load(tmp_path)


def test_memory_is_checked_for_the_samples_at_the_rate_asked_for(monkeypatch):
    sizes = []
    monkeypatch.setattr(sound_files, "check_memory", lambda what, needed, remedy: sizes.append(needed))
    wave = sound_files.read_sound("a.wav", content_of(tone(300)), 8 * RATE)
    assert sizes[0] >= 4 * len(wave)


def test_int16_and_floats_stand_for_each_other():
    stored = torch.tensor([-32767, -1, 0, 1, 32767], dtype=torch.int16)
    assert torch.equal(to_int16(to_float(stored)), stored)
    assert to_float(stored).aminmax() == (-1, 1)
    assert torch.equal(to_int16(torch.tensor([-1.5, 2.0])), torch.tensor([-32767, 32767], dtype=torch.int16))


def test_speakers_are_folders_and_texts_and_phones_lie_beside(tmp_path):
    write_speech(tmp_path, texts=2)
    (tmp_path / "ann" / "0.lab").write_text("signal\nnfields 1\n#\n0.05 125 p\n0.1 125 a\n")
    (tmp_path / "ann" / "1.lab").write_text("#\nnot numbers\n")
    data = load(tmp_path)
    assert data.classes == ["ann", "bob"] and data.labels.tolist() == [0, 0, 1, 1]
    assert [clip.text for clip in data.clips] == ["text 0", "text 1"] * 2
    # those of another speaker who says the same are not taken for hers
    assert [clip.segments for clip in data.clips] == [((0.05, "p"), (0.1, "a")), (), (), ()]
    assert "4 windows in 2 classes (ann 2, bob 2)" in str(data.found) and "1 clips with phones" in str(data.found)


@pytest.mark.parametrize(
    "files",
    [
        {"txt/p1/a1.txt": "one", "txt/p1/a2.txt": "two"},
        {"etc/txt.done.data": '( a1 "one" )\n( a2 "two" )\n'},
        {"wav/p1.trans.txt": "a1 one\na2 two\n"},
        {"p1.trans.txt": "wav/a1 one\nwav/a2 two\n/ x\n .\n.. x\n", "txt.done.data": '( /a/.. "x" )'},
    ],
    ids=["elsewhere", "festival", "list", "paths in a list"],
)
def test_texts_are_found_in_the_places_where_corpora_keep_them(files, tmp_path):
    for name in ("wav/a1.wav", "wav/a2.wav"):
        write_clip(tmp_path / name, tone(300))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    data = load(tmp_path)
    assert [clip.text for clip in data.clips] == ["one", "two"] and data.labels is None


def test_files_are_decoded_a_few_bytes_at_once(tmp_path, monkeypatch):
    write_speech(tmp_path, texts=4, seconds=0.01)
    sizes = []
    monkeypatch.setattr(recordings, "BYTES_AT_ONCE", 1000)
    monkeypatch.setattr(recordings, "check_memory", lambda what, needed, remedy: sizes.append(needed))
    assert len(load(tmp_path).clips) == 8
    assert len(sizes) == 3 and sizes == sorted(sizes) and sizes[-1] > 8 * (320 + len("text 0"))


@pytest.mark.parametrize("name", ["a1.txt", "a1.lab", "p.trans.txt", "txt.done.data"])
@pytest.mark.parametrize("is_package", [False, True], ids=["folder", "package"])
def test_a_text_of_more_than_a_million_bytes_is_refused(name, is_package, tmp_path):
    if is_package:
        write_package(tmp_path / "x.deb", {"a1.wav": content_of(tone(300)), name: b" " * (2**20 + 1)})
    else:
        write_clip(tmp_path / "a1.wav", tone(300))
        (tmp_path / name).write_bytes(b" " * (2**20 + 1))
    with pytest.raises(InputError, match=r"1,048,577 bytes, at most 1,048,576 are read"):
        load(tmp_path)


def test_texts_may_be_endless_numbers(tmp_path):
    for number in range(10):
        write_clip(tmp_path / f"{number}.wav", tone(300, 0.01)).with_suffix(".txt").write_text("7" * (5000 + number))
    assert len(load(tmp_path, "train").clips) == 9


def test_a_text_is_held_out_with_all_who_say_it_and_windows_of_a_clip_stay_together(tmp_path):
    write_speech(tmp_path, texts=20)
    train, test, everything = (load(tmp_path, split, image_size=(500,)) for split in ("train", "test", "all"))
    said, held_out = ({clip.text for clip in part.clips} for part in (train, test))
    assert not said & held_out and len(said | held_out) == 20 and len(held_out) == 2
    assert len(test.clips) == 4 and len(train) + len(test) == len(everything) == 4 * 40
    assert train.classes == test.classes and train.fingerprint() != test.fingerprint()


@pytest.mark.parametrize("inside", ["", "wavs"])
def test_folders_for_training_and_test_are_parts_and_not_speakers(inside, tmp_path):
    write_speech(tmp_path / "train" / inside, texts=3)
    write_speech(tmp_path / "test" / inside, texts=1)
    (tmp_path / "train" / inside / "ann" / "gone.wav").symlink_to(tmp_path / "nowhere")
    train, test = load(tmp_path, "train"), load(tmp_path, "test")
    assert (len(train.clips), len(test.clips)) == (6, 2) and train.classes == test.classes == ["ann", "bob"]
    write_clip(tmp_path / "loose.wav", tone(300))
    with pytest.raises(InputError, match=r"loose\.wav is beside the folders for training and test"):
        load(tmp_path)


def test_windows_hold_every_sample_and_the_last_one_ends_with_its_clip():
    clips = [Clip("long", np.arange(1, 11, dtype=np.int16)), Clip("short", np.arange(21, 23, dtype=np.int16))]
    data = SoundDataset(clips, 4, RATE)
    waves, labels, lengths = data.batch(range(len(data)))
    rows = [[1, 2, 3, 4], [5, 6, 7, 8], [7, 8, 9, 10], [21, 22, 0, 0]]
    assert waves[:, 0].tolist() == rows and labels is None and data.signal.shape == (1, 4)
    assert lengths.tolist() == [4, 4, 4, 2] and data[3].lengths == 2
    assert data.files == ["long"] * 3 + ["short"] and [window.length for window in data.windows] == [4, 4, 4, 2]
    assert torch.equal(data[2].images, waves[2])
    values = np.concatenate([clip.wave for clip in clips]) / 32767
    assert data.variance() == pytest.approx(values.var())


def test_silent_short_and_unreadable_files_are_listed(tmp_path):
    write_speech(tmp_path, texts=2)
    write_clip(tmp_path / "ann" / "mute.wav", np.zeros(2000))
    write_clip(tmp_path / "ann" / "click.wav", tone(400, 0.003))
    (tmp_path / "bob" / "broken.wav").write_bytes(b"RIFF and nothing else")
    write_clip(tmp_path / "bob" / "endless.wav", np.full(100, np.nan), subtype="FLOAT")
    with pytest.raises(InputError, match=r"broken\.wav is not a readable sound file") as caught:
        load(tmp_path)
    assert "`skip_unreadable`; 1 more cannot be read: bob/endless.wav" in str(caught.value)
    data = load(tmp_path, skip_unreadable=True, shortest=64)
    assert len(data.clips) == 4
    for words in ("1 silent (ann/mute.wav)", "1 shorter than a code (ann/click.wav)", "2 unreadable (bob/broken.wav"):
        assert words in str(data.found)


@pytest.mark.parametrize(
    "name,mode", [("data.tar.xz", "w:xz"), ("data.tar.gz", "w:gz"), ("data.tar.bz2", "w:bz2"), ("data.tar", "w:")]
)
def test_a_package_is_read_like_its_files_and_nothing_is_unpacked(name, mode, tmp_path):
    files = {"usr/share/x/a/1.ogg": content_of(tone(300), "OGG"), "usr/share/x/b/1.wav": content_of(tone(500)),
             "usr/share/x/b/1.txt": b"one", "../../outside.wav": content_of(tone(700)), "notes": b"0" * 10}  # fmt: skip
    package = write_package(tmp_path / "x.deb", files, name, mode)
    data = load_images(str(package), split="all")
    assert sorted(clip.name for clip in data.clips) == [
        "../../outside.wav",
        "usr/share/x/a/1.ogg",
        "usr/share/x/b/1.wav",
    ]
    assert os.listdir(tmp_path) == ["x.deb"] and not (tmp_path.parent.parent / "outside.wav").exists()
    of_folder = load(tmp_path)  # packages in a folder are read, too
    assert [clip.text for clip in of_folder.clips] == [clip.text for clip in data.clips]


def test_a_package_whose_files_are_named_after_speakers_is_known(tmp_path):
    names = [f"usr/share/gcin-voice/ogg/{text}/{speaker}.ogg" for text in ("ba", "ma", "la") for speaker in (3, 5)]
    package = write_package(tmp_path / "gcin.deb", dict.fromkeys(names, content_of(tone(300), "OGG")))
    data = load(package)
    assert data.classes == ["3", "5"] and {clip.text for clip in data.clips} == {"ba", "ma", "la"}
    assert {clip.text for clip in load(package, "test").clips}.isdisjoint(
        clip.text for clip in load(package, "train").clips
    )


def cut_off(package):
    package.write_bytes(package.read_bytes()[:-300])


@pytest.mark.parametrize(
    "harm,reason",
    [
        (cut_off, "is damaged"),
        (lambda package: package.write_bytes(b"PK and so on"), "is not a Debian package"),
        (lambda package: write_package(package, {}, "data.tar.zst"), r"holds data\.tar\.zst, but only data\.tar, "),
        (lambda package: write_package(package, {}, "control2"), r"no member data\.tar"),
        (lambda package: write_package(package, {"readme": b"no sound"}), "no sound in"),
        (lambda package: write_package(package, {"x" * 2**21: b""}), "a header of more than a million bytes"),
    ],
    ids=["cut off", "other file", "zst", "no data", "no sound", "endless name"],
)
def test_a_package_that_cannot_be_read_is_refused_in_one_line(harm, reason, tmp_path):
    noise = np.random.default_rng(0).normal(size=2000).clip(-3, 3) / 4
    package = write_package(tmp_path / "x.deb", {"a.wav": content_of(noise)})
    harm(package)
    with pytest.raises(InputError, match=reason) as caught:
        load(package)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("root,reason", [(None, "is not given"), ("nowhere", "there is no|nowhere is neither")])
def test_speech_needs_a_place(root, reason, tmp_path):
    with pytest.raises(InputError, match=reason):
        load(root and tmp_path / root)


def test_clips_both_loose_and_in_folders_are_refused(tmp_path):
    write_clip(tmp_path / "a.wav", tone(300))
    write_clip(tmp_path / "ann" / "a.wav", tone(300))
    with pytest.raises(InputError, match=r"both loose \(a\.wav\) and in folders of speakers \(ann/a\.wav\)"):
        load(tmp_path)


def test_without_soundfile_the_extra_is_named(tmp_path, monkeypatch):
    write_clip(tmp_path / "a.wav", tone(300))
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(InputError, match=r'needs the soundfile package: pip install "codegrid\[sound\]"'):
        load(tmp_path)


def test_several_places_are_one_set_and_one_without_speakers_is_a_speaker(tmp_path):
    write_speech(tmp_path / "first", texts=10)
    write_clip(tmp_path / "solo" / "a.wav", tone(300)).with_suffix(".txt").write_text("text 0")
    (tmp_path / "other" / "train" / "ann").mkdir(parents=True)
    write_clip(tmp_path / "other" / "train" / "ann" / "x.wav", tone(300))
    write_clip(tmp_path / "other" / "test" / "ann" / "y.wav", tone(300))
    package = write_package(tmp_path / "x-voice_1.0_all.deb", {"usr/share/1.ogg": content_of(tone(300), "OGG")})
    places = [tmp_path / "first", tmp_path / "solo", package, tmp_path / "other"]
    data, train, test = (load(places, split) for split in ("all", "train", "test"))
    assert data.classes == train.classes == test.classes == ["ann", "bob", "solo", "x-voice"]
    assert {"first/ann/0.wav", "solo/a.wav", "x-voice/usr/share/1.ogg", "other/train/ann/x.wav"} <= set(data.files)
    assert len(train.clips) + len(test.clips) == len(data.clips) == 24
    # what one place holds out, and a part of another, stay what they are; a text is held out wherever it is said
    assert "other/train/ann/x.wav" in train.files and "other/test/ann/y.wav" in test.files
    said = [{clip.text for clip in part.clips if clip.text} for part in (train, test)]
    assert not said[0] & said[1] and all(str(place) in data.found.name for place in places)


def test_folders_of_the_same_name_are_told_apart_and_each_place_must_hold_sound(tmp_path):
    for folder in ("a/wav", "b/wav"):
        write_clip(tmp_path / folder / "1.wav", tone(300))
    assert load([tmp_path / "a" / "wav", tmp_path / "b" / "wav"]).classes == ["wav", "wav-2"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no sound in .*empty"):
        load([tmp_path / "a", tmp_path / "empty"])
    with pytest.raises(InputError, match="gone is neither: speech needs a folder"):
        load([tmp_path / "a", tmp_path / "gone"])
    (tmp_path / "b" / "wav" / "2.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match="is not a readable sound file"):
        load([tmp_path / "a", tmp_path / "b"])
    assert "1 unreadable (b/wav/2.wav)" in str(load([tmp_path / "a", tmp_path / "b"], skip_unreadable=True).found)
