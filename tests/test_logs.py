"""`--log-with`: what is logged, that a resumed run goes on in it, and that nothing learnt depends on it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY_PRIOR, TINY_TOKENIZER
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from codegrid.pipelines.running import configs
from codegrid.pipelines.running.cli import Stopped
from codegrid.pipelines.running.run_folder import NEUTRAL
from codegrid.pipelines.train_tokenizer import train_tokenizer
from codegrid.pipelines.training import trackers as logs
from codegrid.tensors import digest_of_file

WITH = ("--log-with", "tensorboard")


def read_logs(folder):
    events = EventAccumulator(str(folder / "logs" / "codegrid"))
    events.Reload()
    return events


def values_of(events, name):
    return {event.step: event.value for event in events.Scalars(name)}


@pytest.fixture(scope="module")
def logged(small_run, bars_file, tmp_path_factory):
    """A folder with the tokenizer/ and prior/ of `small_run`, trained again with logs."""
    folder = tmp_path_factory.mktemp("logged")
    data = ("--dataset", "npz", "--data-root", bars_file)
    for name, flags in (
        ("train_tokenizer", (*data, "--output", folder / "tokenizer", *TINY_TOKENIZER)),
        ("train_prior", ("--codes", small_run / "codes", "--output", folder / "prior", *TINY_PRIOR)),
    ):
        module = __import__(f"codegrid.pipelines.{name}", fromlist=["main"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", [f"pipelines/{name}.py", *map(str, flags), *WITH])
            module.main()
    return folder


def test_logging_does_not_change_what_is_learnt(small_run, logged):
    for name in ("tokenizer", "prior"):
        plain, with_logs = (digest_of_file(folder / name / "model.safetensors") for folder in (small_run, logged))
        assert plain == with_logs


def test_the_logged_figures_are_those_of_the_history(logged):
    from codegrid.pipelines import TwoStagePipeline

    pipeline = TwoStagePipeline.from_pretrained(logged)
    for model, name, figure in (
        (pipeline.tokenizer, "tokenizer", "psnr"), (pipeline.tokenizer, "tokenizer", "unused_entries"),
        (pipeline.prior, "prior", "bits_per_code"),
    ):  # fmt: skip
        expected = {row["step"]: row[figure] for row in model.provenance["history"]}
        assert values_of(read_logs(logged / name), f"held_out/{figure}") == pytest.approx(expected, rel=1e-6)


def test_losses_learning_rate_and_speed_are_logged(logged):
    tags = set(read_logs(logged / "tokenizer").Tags()["scalars"])
    assert tags >= {"train/loss", "train/reconstruction", "train/batch_perplexity", "train/lr"}
    assert tags >= {"held_out/perplexity", "held_out/codebook_usage", "speed/images_per_second", "speed/waiting"}
    tags = set(read_logs(logged / "prior").Tags()["scalars"])
    assert tags >= {"train/bits", "held_out/bits_per_code", "speed/grids_per_second"}
    assert values_of(read_logs(logged / "tokenizer"), "train/lr").keys() == {20, 30}


def test_pictures_are_logged_at_each_validation(logged):
    for name, picture, width in (
        ("tokenizer", "reconstructions", (6 * 22 + 2) * 6),
        ("prior", "samples", 8 * (5 * 22 + 4) + 4),
    ):
        images = read_logs(logged / name).Images(picture)
        assert len(images) > 2 and images[-1].step == (30 if name == "tokenizer" else 20)
        assert images[0].width == width


def settings_for(folder, bars_file, **changes):
    settings = configs.TrainTokenizer(
        output=str(folder), dataset="npz", data_root=str(bars_file), hidden_channels=16, embedding_dim=8,
        num_embeddings=16, steps=20, batch_size=8, precision="fp32", log_with="tensorboard", save_every=10,
    )  # fmt: skip
    return replace(settings, **changes)


def stop_after(steps, monkeypatch):
    """Let the next training run be killed once it has seen so many steps."""
    from codegrid.pipelines.training import loop as training

    def count(*args, **options):
        count.done += 1
        if count.done > steps:
            raise Stopped(15)
        return find_gradients(*args, **options)

    find_gradients, count.done = training._find_gradients, 0
    monkeypatch.setattr(training, "_find_gradients", count)


def test_a_resumed_run_goes_on_in_the_same_curves(bars_file, tmp_path, monkeypatch):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train_tokenizer(settings_for(whole, bars_file))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(17, patch)  # the last saved state is that of step 10: steps 11 to 17 are run again
        train_tokenizer(settings_for(resumed, bars_file))
    assert (resumed / "logs").is_dir()
    train_tokenizer(settings_for(resumed, bars_file))
    for name in ("held_out/reconstruction_error", "held_out/psnr"):
        first, second = read_logs(whole).Scalars(name), read_logs(resumed).Scalars(name)
        assert [(event.step, event.value) for event in second] == [(event.step, event.value) for event in first]


def test_a_run_that_was_killed_before_its_first_state_starts_its_curves_again(bars_file, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(7, patch)
        train_tokenizer(settings_for(tmp_path, bars_file))
    train_tokenizer(settings_for(tmp_path, bars_file))
    steps = [event.step for event in read_logs(tmp_path).Scalars("held_out/psnr")]
    assert steps == sorted(set(steps)) and steps[0] == 2


def test_a_run_may_go_on_without_its_log(bars_file, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(5, patch)
        train_tokenizer(settings_for(tmp_path, bars_file, steps=6, save_every=3))
    train_tokenizer(settings_for(tmp_path, bars_file, steps=6, save_every=3, log_with="none"))
    assert (tmp_path / "model.safetensors").exists() and "log_with" in NEUTRAL


def test_a_missing_tracker_is_one_line(bars_file, tmp_path, run_script, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    flags = ("--dataset", "npz", "--data-root", bars_file, "--output", tmp_path / "new", *TINY_TOKENIZER)
    for name, package in (("tensorboard", "tensorboard"), ("comet_ml", "comet-ml")):
        result = run_script("train_tokenizer", *flags, "--log-with", name)
        assert result.code == 2 and f"pip install {package}," in result.err.splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_every_tracker_that_shows_images_gets_them_in_its_form(monkeypatch):
    page = torch.zeros(3, 4, 5)
    for name, shape in (("tensorboard", (1, 4, 5, 3)), ("wandb", (1, 4, 5, 3)), ("aim", (4, 5, 3))):
        seen = {}
        tracker = SimpleNamespace(name=name, log_images=lambda values, step, seen=seen, **_: seen.update(values))
        log = object.__new__(logs.Log)
        log.accelerator = SimpleNamespace(trackers=[tracker, SimpleNamespace(name="dvclive")])
        log.show(3, lambda model: {"page": page}, torch.nn.Identity())
        assert np.shape(seen["page"]) == shape and np.unique(seen["page"]).tolist() == [128]


def test_the_flag_offers_the_trackers_of_accelerate():
    from typing import get_args

    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert set(LOGGER_TYPE_TO_CLASS) <= set(get_args(configs.Tracker))
