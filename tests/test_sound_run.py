"""Sound through the commands: training on recordings, export, decoding to .wav files, figures."""

import json
import re
from importlib import import_module

import numpy as np
import pytest
import soundfile
import torch
from written_sound import RATE, tone, write_clip, write_speech

from codegrid import TwoStagePipeline, load
from codegrid.codes import Condition, Grid, Signal
from codegrid.data.codes import CodeBatch, CodeDataset
from codegrid.errors import InputError
from codegrid.locks import releasing
from codegrid.model_card import PNG
from codegrid.pipelines.decode_codes import DecodeCodes
from codegrid.pipelines.drawing.shown import as_pictures
from codegrid.pipelines.generation.completion import pictures_in
from codegrid.pipelines.generation.rejection import find_source
from codegrid.pipelines.generation.samples import Samples, as_output
from codegrid.pipelines.running.outputs import clear_output
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.initial import with_options_of
from codegrid.pipelines.training.prior import PriorObjective
from codegrid.stage1_vqvae.waves import WaveVQVAE
from codegrid.stage2_prior.wavenet.network import WaveNet

TINY = (
    "--strides", "4", "4", "--hidden-channels", "8", "--num-residual-blocks", "1", "--num-embeddings", "8",
    "--embedding-dim", "4", "--window", "160", "--steps", "4", "--batch-size", "4", "--precision", "fp32",
    "--validate-every", "4",
)  # fmt: skip
SMALL = {"strides": (4, 4), "hidden_channels": 8, "num_residual_blocks": 1, "num_embeddings": 8, "embedding_dim": 4}
WAVENET = ("--decoder", "wavenet", "--channels", "4", "--skip-channels", "4", "--layers-per-cycle", "2")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Two speakers, each of whom says twelve things of a fiftieth of a second; and a click, and silence."""
    root = write_speech(tmp_path_factory.mktemp("voices"), texts=12, seconds=0.02)
    write_clip(root / "ann" / "click.wav", tone(400, 0.0005))
    write_clip(root / "bob" / "mute.wav", np.zeros(800))
    return root


def data(root):
    return ("--dataset", "speech", "--data-root", root)


@pytest.fixture(scope="module")
def tokenizer(recordings, tmp_path_factory):
    """A tokenizer that was trained for a moment, in the folder of a run."""
    run = tmp_path_factory.mktemp("run")
    call("train_tokenizer", "--model", "wave", *data(recordings), *TINY, "--run", run)
    return run


def call(name, *flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [f"codegrid-{name}", *map(str, flags)])
        import_module(f"codegrid.pipelines.{name}").main()


def test_a_tokenizer_of_sound_is_trained_by_the_command(tokenizer, recordings):
    model = load(tokenizer / "tokenizer")
    assert model.signal == Signal("sound", 1, (160,), RATE) and model.provenance["classes"] == ["ann", "bob"]
    assert model.provenance["metrics"]["reconstruction_error"] > 0 and not model.draws
    assert (tokenizer / "tokenizer" / "reconstructions.png").stat().st_size > 0


def test_codes_of_sound_are_exported_decoded_and_measured(tokenizer, capsys):
    call("export_codes", "--run", tokenizer)
    assert "1 shorter than a code (ann/click.wav)" in (printed := capsys.readouterr().out) and "1 silent" in printed
    codes = CodeDataset(tokenizer / "codes")
    assert codes.layout[0].shape == (10,) and codes.classes == ["ann", "bob"] and len(codes) == 2 * 22
    call("decode_codes", "--run", tokenizer, "--output", tokenizer / "decoded")
    files = sorted((tokenizer / "decoded" / "sounds").iterdir())
    wave, rate = soundfile.read(files[0], dtype="int16")
    assert (len(files), rate, wave.shape) == (len(codes), RATE, (160,)) and files[0].name == "00000-0.wav"
    model, batch = load(tokenizer / "tokenizer"), codes.batch([0])
    expected = model.decode(batch.codes, given=Condition(batch.labels))[0, 0]
    assert np.abs(wave / 32767 - expected.numpy()).max() < 1e-4
    files[3].unlink()
    call("decode_codes", "--run", tokenizer, "--output", tokenizer / "decoded")
    assert (tokenizer / "decoded" / "sounds.png").stat().st_size > 0
    call("evaluate", "--run", tokenizer, "--output", tokenizer / "figures")
    figures = json.loads((tokenizer / "figures" / "metrics.json").read_text())
    assert figures["reconstruction_error"] == pytest.approx(model.provenance["metrics"]["reconstruction_error"], 1e-3)
    assert (tokenizer / "figures" / "reconstructions.png").stat().st_size > 0


def test_several_places_are_read_by_every_command_and_named_in_cards(recordings, tmp_path):
    places = (recordings / "ann", recordings / "bob")
    call("train_tokenizer", "--model", "wave", "--dataset", "speech", "--data-root", *places, *TINY, "--run", tmp_path)
    model = load(tmp_path / "tokenizer")
    assert model.provenance["classes"] == model.provenance["places"] == ["ann", "bob"]
    assert "ann, bob" in (card := (tmp_path / "tokenizer" / "README.md").read_text()) and str(recordings) not in card
    call("export_codes", "--run", tmp_path)
    codes = CodeDataset(tmp_path / "codes")
    manifest = json.loads((tmp_path / "codes" / "manifest.json").read_text())
    assert codes.classes == manifest["provenance"]["places"] == ["ann", "bob"]
    call("evaluate", "--run", tmp_path, "--data-root", *places, "--output", tmp_path / "figures")
    assert json.loads((tmp_path / "figures" / "metrics.json").read_text())["reconstruction_error"] > 0


def test_a_wavenet_learns_on_the_frozen_codes_of_another_tokenizer(tokenizer, recordings, tmp_path):
    start = ("--init-from", tokenizer / "tokenizer", "--frozen-codes")
    call("train_tokenizer", "--model", "wave", *data(recordings), *TINY, *WAVENET, *start, "--output", tmp_path / "t")
    model, source = load(tmp_path / "t"), load(tokenizer / "tokenizer")
    x = torch.randn(2, 1, 160).clamp(-1, 1)
    assert model.draws and torch.equal(model.encode(x)[0], source.encode(x)[0])
    metrics = model.provenance["metrics"]
    call("evaluate", "--tokenizer", tmp_path / "t", "--output", tmp_path / "figures")
    figures = json.loads((tmp_path / "figures" / "metrics.json").read_text())
    assert figures["nats"] == pytest.approx(metrics["nats"], 1e-3) and "psnr" in figures
    assert 0 < metrics["nats"] < 7 and metrics["swapped_nats"] > 0 and metrics["swapped_nats_error"] >= 0
    assert "--frozen-codes" not in (tmp_path / "t" / "README.md").read_text()


def test_a_prior_over_codes_of_sound_draws_wav_files_of_each_speaker_and_no_word_is_of_images(
    tokenizer, tmp_path, capsys
):
    call("export_codes", "--run", tokenizer, "--output", tmp_path / "codes")
    call(
        "train_prior", "--codes", tmp_path / "codes", "--tokenizer", tokenizer / "tokenizer", "--model", "wavenet",
        "--channels", "4", "--layers-per-cycle", "4", "--steps", "4", "--batch-size", "8", "--precision", "fp32",
        "--output", tmp_path / "prior",
    )  # fmt: skip
    parts = ("--tokenizer", tokenizer / "tokenizer", "--prior", tmp_path / "prior")
    call("sample", *parts, "--labels", "ann", "bob", "--output", tmp_path / "s")
    names = [path.name for path in sorted((tmp_path / "s" / "samples").iterdir())]
    assert names == ["00000-ann.wav", "00001-bob.wav"] and (tmp_path / "s" / "samples.png").stat().st_size > 0
    call("evaluate", *parts, "--output", tmp_path / "figures")
    figures = json.loads((tmp_path / "figures" / "metrics.json").read_text())
    assert 0 < figures["bits_per_code"] < 4 and "no bound_bits_per_dim: this decoder" in figures["left_out"][-1]
    wave, rate = soundfile.read(tmp_path / "s" / "samples" / names[1])
    assert (len(wave), rate) == (160, RATE) and (tmp_path / "prior" / "samples.png").stat().st_size > 0
    call("compress", *parts, "--output", tmp_path / "packed.cgz")
    call("decompress", *parts, "--file", tmp_path / "packed.cgz", "--format", "codes", "--output", tmp_path / "back")
    told = capsys.readouterr().out.replace("bits_per_image", "")
    assert "packed.cgz: 48 windows in" in told and "back: 48 windows as codes" in told
    assert "codes: 44 windows as 10 codes out of 8" in told and "image" not in told


def test_training_that_starts_from_a_model_freezes_no_codes_unless_it_is_told_to():
    settings = with_options_of(TrainTokenizer(model="wave", output="t"), {"frozen_codes": True, "hidden_channels": 8})
    assert settings.options == {"hidden_channels": 8}


@pytest.mark.parametrize(
    "flags,reason",
    [
        (["--model", "wave"], "--model wave learns sound, and mnist5k holds images: give --dataset speech"),
        (
            ["--model", "vqvae", "--dataset", "speech", "--data-root", "{}"],
            "speech holds sound: choose another",
        ),
        (["--model", "wave", "--dataset", "speech", "--data-root", "{}", "--flip"], "--flip is for images"),
        (["--window", "100"], "--window is for sound, but a vqvae tokenizer learns images"),
        (
            ["--model", "wave", "--dataset", "speech", "--data-root", "{}", "--frozen-codes"],
            "--frozen-codes needs --init-from: give the tokenizer whose codes",
        ),
        (["--model", "wave", "--dataset", "speech"], "--data-root is not given: speech needs a folder"),
        (["--model", "wave", "--dataset", "speech", "--data-root", "{}", "--window", "64"], "become a single code"),
    ],
    ids=str,
)
def test_what_does_not_fit_together_is_refused_in_one_line(flags, reason, recordings, run_script, tmp_path):
    words = [flag.format(recordings) for flag in flags]
    done = run_script("train_tokenizer", *words, "--output", tmp_path / "t")
    assert done.code == 2 and reason in done.err and "Traceback" not in done.err


def test_a_tokenizer_of_sound_takes_no_images_and_one_of_images_no_sound(tokenizer, run_script, recordings, tmp_path):
    done = run_script("export_codes", "--run", tokenizer, "--dataset", "mnist5k", "--output", tmp_path / "c")
    assert done.code == 2 and "--dataset mnist5k holds images, but the tokenizer is one of sounds" in done.err
    call("export_codes", "--run", tokenizer, "--output", tmp_path / "codes")
    done = run_script("decode_codes", "--run", tokenizer, "--codes", tmp_path / "codes", "--format", "png",
                      "--output", tmp_path / "d")  # fmt: skip
    assert done.code == 2 and "--format png: these are sound: use wav" in done.err


def test_commands_that_only_show_images_say_so(tokenizer, run_script, tmp_path):
    done = run_script("plot", "--run", tokenizer, "--output", tmp_path / "p")
    assert done.code == 2 and "--tokenizer is one of sound, but plot shows images only" in done.err
    done = run_script("evaluate", "--run", tokenizer, "--features", "classifier", "--output", tmp_path / "e")
    assert done.code == 2 and "--tokenizer is one of sound, but --features compare images only" in done.err
    done = run_script("doctor", "--run", tokenizer)
    assert "the doctor looks at images" in done.out and "Traceback" not in done.err

    done = run_script("export_codes", "--run", tokenizer, "--views", "2", "--shift", "3", "--output", tmp_path / "c")
    assert done.code == 2 and "--tokenizer is one of sound, but --views change images only" in done.err


@pytest.mark.parametrize(
    "use,reason",
    [
        (lambda voices: pictures_in(".", voices, "complete"), "sound, but `complete` gives images only"),
        (lambda voices: pictures_in(".", voices, "images"), "sound, but `images` gives images only"),
        (
            lambda voices: find_source("classifier", voices, (), "cpu", Condition()),
            "classifiers in `reject_with` judge images only",
        ),
    ],
)
def test_pictures_are_not_for_a_tokenizer_of_sound(use, reason):
    with pytest.raises(InputError, match=reason):
        use(WaveVQVAE(Signal("sound", 1, (160,), RATE), **SMALL))


def test_sounds_that_a_run_left_are_overwritten_and_others_are_not(tmp_path):
    (tmp_path / "run.json").write_text('{"command": "decode-codes"}')
    song = write_clip(tmp_path / "sounds" / "song.wav", tone(400))
    with releasing(), pytest.raises(InputError, match=r"also holds 'sounds/song\.wav', which no run leaves there"):
        clear_output(tmp_path, DecodeCodes(tokenizer="t", codes="c", output="o"))
    song.rename(song.with_name("00000-ann.wav"))
    with releasing():
        clear_output(tmp_path, DecodeCodes(tokenizer="t", codes="c", output="o"))
    assert not song.parent.exists()


def test_samples_of_some_grids_of_sound_are_shown_as_spectrograms():
    tokenizer = WaveVQVAE(Signal("sound", 1, (160,), RATE), quantizer="residual", num_quantizers=2, **SMALL).eval()
    prior = WaveNet(tokenizer.layout[:1], (0,), channels=4, layers_per_cycle=2).eval()

    class Codes:
        def __len__(self):
            return 2

        def batch(self, numbers):
            return CodeBatch(tuple(torch.zeros(len(numbers), *grid.shape).long() for grid in tokenizer.layout), {})

    objective = PriorObjective(prior, Codes(), Codes(), TrainPrior(codes="codes", output="prior"))
    assert objective.draw_part(prior, tokenizer).startswith(PNG)


def test_the_card_of_a_prior_over_sound_completes_no_pictures_and_saves_none(tmp_path):
    WaveNet((Grid((10,), 8),), channels=4, layers_per_cycle=2).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "turns into sound" in card and "codegrid[sound]" in card and "codegrid sample" in card
    assert not re.search("image-generation|--complete|PICTURES|pil|save", card)


def test_samples_of_sound_are_tensors_and_no_pictures(tmp_path):
    waves = torch.zeros(2, 1, 160)
    assert as_output(waves, "pt") is waves
    for use in (lambda: as_output(waves, "pil"), lambda: as_output(waves, "np"),
                lambda: Samples(waves, (), None, 0).save(tmp_path / "s")):  # fmt: skip
        with pytest.raises(InputError, match=r"samples of shape \(2, 1, 160\) are sound, not pictures"):
            use()
    tokenizer = WaveVQVAE(Signal("sound", 1, (160,), RATE), **SMALL).eval()
    prior = WaveNet(tokenizer.layout, channels=4, layers_per_cycle=2).eval()
    prior.provenance = {"tokenizer_fingerprint": tokenizer.fingerprint()}
    with pytest.raises(InputError, match="sound, but `output_type` pil shows images only"):
        TwoStagePipeline(tokenizer, prior).sample(2, output_type="pil")


def test_a_spectrogram_shows_a_tone_at_its_height():
    signal = Signal("sound", 1, (4096,), RATE)
    low, high = as_pictures(signal, torch.stack([torch.from_numpy(tone(p, 0.256)) for p in (1000, 6000)])[:, None])
    rows = [int(picture[0].mean(1).argmax()) for picture in (low, high)]
    bins = [low.shape[1] - 1 - row for row in rows]  # of 8 kHz, from below
    assert [round(each * 8000 / (low.shape[1] - 1)) for each in bins] == [1000, 6000]
    assert low.min() == -1 and 0.5 < low.max() <= 1
    images = torch.zeros(2, 3, 4, 5)
    assert as_pictures(Signal(), images) is images
