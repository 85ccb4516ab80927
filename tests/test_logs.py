"""`log_with`: what is logged, that a resumed run continues in it, and that nothing learnt depends on it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from codegrid import load
from codegrid.errors import InputError
from codegrid.locks import hold, releasing
from codegrid.pipelines.running.cli import Stopped
from codegrid.pipelines.running.run_folder import NEUTRAL
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.log import Log
from codegrid.pipelines.training.prior import train_prior
from codegrid.pipelines.training.tokenizer import TokenizerObjective, train_tokenizer
from codegrid.tensors import digest_of_file


@pytest.fixture(scope="module")
def tokenizer_settings(bars_file):
    return TrainTokenizer(
        output="", dataset="npz", data_root=str(bars_file), steps=20, batch_size=8, precision="fp32", save_every=10,
        validate_every=5, log_with="tensorboard",
        options={"hidden_channels": 16, "embedding_dim": 8, "num_embeddings": 16},
    )  # fmt: skip


@pytest.fixture(scope="module")
def prior_settings(small_run):
    return TrainPrior(
        output="", codes=str(small_run / "codes"), steps=20, batch_size=8, precision="fp32", validate_every=5,
        log_with="tensorboard", options={"channels": 8, "num_layers": 2},
    )  # fmt: skip


@pytest.fixture(scope="module")
def logged(tokenizer_settings, prior_settings, tmp_path_factory):
    """A folder with tokenizer/ and prior/, trained with logs, and again as plain-tokenizer/ and plain-prior/."""
    folder = tmp_path_factory.mktemp("logged")
    for name, train, settings in (
        ("tokenizer", train_tokenizer, tokenizer_settings), ("prior", train_prior, prior_settings)
    ):  # fmt: skip
        train(replace(settings, output=str(folder / name)))
        train(replace(settings, output=str(folder / f"plain-{name}"), log_with="none"))
    return folder


def read_logs(folder):
    events = EventAccumulator(str(folder / "logs" / "codegrid"))
    events.Reload()
    return events


def values_of(events, name):
    return {event.step: event.value for event in events.Scalars(name)}


def test_logging_does_not_change_what_is_learnt(logged):
    for name in ("tokenizer", "prior"):
        plain, with_logs = (digest_of_file(logged / part / "model.safetensors") for part in (name, f"plain-{name}"))
        assert plain == with_logs
        assert not (logged / f"plain-{name}" / "logs").exists()


@pytest.mark.parametrize(
    "name,metric", [("tokenizer", "psnr"), ("tokenizer", "unused_entries"), ("prior", "bits_per_code")]
)
def test_the_logged_metrics_are_those_of_the_history(name, metric, logged):
    expected = {row["step"]: row[metric] for row in load(logged / name).provenance["history"]}
    assert values_of(read_logs(logged / name), f"validation/{metric}") == pytest.approx(expected, rel=1e-6)


def test_losses_learning_rate_and_speed_are_logged(logged):
    tags = set(read_logs(logged / "tokenizer").Tags()["scalars"])
    assert tags >= {"train/loss", "train/reconstruction_loss", "train/commitment_loss", "train/batch_perplexity"}
    assert tags >= {"validation/perplexity", "validation/codebook_usage", "speed/images_per_second", "speed/waiting"}
    tags = set(read_logs(logged / "prior").Tags()["scalars"])
    assert tags >= {"train/nll", "train/batch_bits_per_code", "validation/bits_per_code", "speed/grids_per_second"}
    assert values_of(read_logs(logged / "tokenizer"), "train/lr").keys() == {20}


@pytest.mark.parametrize("name,picture", [("tokenizer", "reconstructions"), ("prior", "samples")])
def test_pictures_are_logged_at_each_validation(name, picture, logged):
    images = read_logs(logged / name).Images(picture)
    assert len(images) > 2 and images[-1].step == 20
    assert images[0].width > 700 and images[0].height > 100, "small images are enlarged"


def stop_at(step, monkeypatch):
    """Let the next training run be killed at a step, the first being 0."""
    losses = TokenizerObjective.losses

    def count(self, player, wrapped, batch, moment):
        if moment.step == step:
            raise Stopped(15)
        return losses(self, player, wrapped, batch, moment)

    monkeypatch.setattr(TokenizerObjective, "losses", count)


@pytest.mark.parametrize("step", [7, 17])  # before the first saved state, that of step 10, and after it
def test_a_resumed_run_continues_in_the_same_curves(step, tokenizer_settings, logged, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(step, patch)
        train_tokenizer(replace(tokenizer_settings, output=str(tmp_path)))
    assert (tmp_path / "logs").is_dir()
    train_tokenizer(replace(tokenizer_settings, output=str(tmp_path)))
    for name in ("validation/reconstruction_error", "validation/psnr"):
        first, second = read_logs(logged / "tokenizer").Scalars(name), read_logs(tmp_path).Scalars(name)
        assert [(event.step, event.value) for event in second] == [(event.step, event.value) for event in first]


def test_a_run_may_continue_without_its_log(tokenizer_settings, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(5, patch)
        train_tokenizer(replace(tokenizer_settings, output=str(tmp_path), steps=6, save_every=3))
    train_tokenizer(replace(tokenizer_settings, output=str(tmp_path), steps=6, save_every=3, log_with="none"))
    assert (tmp_path / "model.safetensors").exists() and "log_with" in NEUTRAL


@pytest.mark.parametrize("name,install", [("tensorboard", '"codegrid\\[log]"'), ("wandb", "wandb$")])
def test_a_missing_tracker_is_one_line_and_leaves_no_folder(name, install, tokenizer_settings, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(InputError, match=f"`log_with` {name} needs the {name} package: pip install {install}"):
        train_tokenizer(replace(tokenizer_settings, output=str(tmp_path / "new"), log_with=name))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["logs", "logs/codegrid"])
def test_logs_are_not_written_behind_a_link(place, tokenizer_settings, tmp_path):
    (tmp_path / "mine").mkdir()
    with releasing():
        run = SimpleNamespace(folder=hold(tmp_path / "run"))
        (run.folder / place).parent.mkdir(exist_ok=True)
        (run.folder / place).symlink_to(tmp_path / "mine")
        with pytest.raises(InputError, match=f"{place} is a link, or behind one"):
            Log(SimpleNamespace(is_main_process=True), run, tokenizer_settings, 0)


@pytest.mark.parametrize("name,shape", [("tensorboard", (1, 4, 5, 3)), ("wandb", (1, 4, 5, 3))])
def test_every_tracker_gets_pictures_in_its_form(name, shape):
    seen = {}
    tracker = SimpleNamespace(name=name, log_images=lambda values, step, **_: seen.update(values))
    log = object.__new__(Log)
    log.accelerator = SimpleNamespace(trackers=[tracker])
    log.show(3, SimpleNamespace(draw=lambda: {"page": torch.full((3, 4, 5), 0.5)}))
    assert np.shape(seen["page"]) == shape and np.unique(seen["page"]).tolist() == [128]
