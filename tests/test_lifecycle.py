"""A training run between its start and its end: models to use meanwhile, an early end, more steps, other weights."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from test_training import Killed, kill_at_state, train_toy
from toy_objective import Toy
from written_codes import HEADER, draw_codes, export, shard_of

from codegrid import load
from codegrid.codes import Grid
from codegrid.errors import InputError
from codegrid.pipelines.running.stopping import StopSignals
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.loop import Trained, remove_usable
from codegrid.pipelines.training.prior import PriorObjective, train_prior
from codegrid.pipelines.training.tokenizer import TokenizerObjective, train_tokenizer
from codegrid.usable import find_usable, load_usable


class Stop(Exception):
    """Something that ends a run at once."""


class Stage(NamedTuple):
    """A stage of training."""

    train: Callable[[Any], Trained]
    settings: Any
    objective: type
    criterion: str  # the metric that tells the best


@pytest.fixture(scope="module")
def codes_folder(tmp_path_factory):
    """Codes of two classes, one grid of 2×2."""
    folder, layout = tmp_path_factory.mktemp("codes") / "codes", (Grid((2, 2), 8),)
    codes = draw_codes(layout)
    export(folder, replace(HEADER, grids=[grid.as_json() for grid in layout]), lambda rows: shard_of(rows, codes))
    return folder


@pytest.fixture(params=["tokenizer", "prior"])
def stage(request, bars_file, codes_folder, tmp_path):
    """A stage with small settings."""
    shared = {"output": str(tmp_path / "run"), "steps": 6, "batch_size": 8, "validate_every": 2, "precision": "fp32"}
    if request.param == "prior":
        options = {"channels": 4, "num_layers": 2}
        its = TrainPrior(codes=str(codes_folder), options=options, **shared)
        return Stage(train_prior, its, PriorObjective, "bits_per_code")
    options = {"hidden_channels": 8, "embedding_dim": 4, "num_embeddings": 8}
    its = TrainTokenizer(dataset="npz", data_root=str(bars_file), options=options, **shared)
    return Stage(train_tokenizer, its, TokenizerObjective, "reconstruction_error")


def at_step(monkeypatch, objective, number, act):
    """Let something happen in the loss of a training step, the first being 0."""
    losses = objective.losses

    def act_and_go_on(self, player, wrapped, batch, moment):
        if moment.step == number:
            act()
        return losses(self, player, wrapped, batch, moment)

    monkeypatch.setattr(objective, "losses", act_and_go_on)


def stop():
    raise Stop


def stopped_at(number, monkeypatch, stage, **changes):
    """Train until the loss of one step, and save the state before it."""
    with monkeypatch.context() as patch, pytest.raises(Stop):
        at_step(patch, stage.objective, number, stop)
        stage.train(replace(stage.settings, save_every=number, **changes))


def files_of(folder):
    return {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}


def test_a_model_can_be_loaded_while_its_training_runs(stage, monkeypatch, capsys):
    output, loaded = stage.settings.output, []
    at_step(monkeypatch, stage.objective, 4, lambda: loaded.append(load(output)))
    trained = stage.train(stage.settings)
    (best,) = loaded
    rows = best.provenance["history"]
    assert [row["step"] for row in rows] == [2, 4]
    assert best.provenance["step"] == min(rows, key=lambda row: row[stage.criterion])["step"]
    assert f"{output} is not finished: using its best model so far" in capsys.readouterr().err
    assert not (trained.folder / "best").exists() and not (trained.folder / "last").exists()


def test_a_stopped_run_has_its_best_and_its_last_model(stage, monkeypatch):
    measure, worse = stage.objective.validate, iter([1.0, 2.0])
    monkeypatch.setattr(stage.objective, "validate", lambda self: {**measure(self), stage.criterion: next(worse)})
    stopped_at(4, monkeypatch, stage)
    output = stage.settings.output
    assert [load(f"{output}/{name}").provenance["step"] for name in ("best", "last")] == [2, 4]
    assert load(output).provenance["step"] == 2


def test_where_no_metric_tells_the_best_there_is_the_last_model_alone(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_state(patch, 2)
        toy = Toy(keep_best=False)
        toy.criterion = ""
        train_toy(tmp_path, toy)
    assert find_usable(tmp_path) == tmp_path / "last" and not (tmp_path / "best").exists()


def test_a_run_that_has_not_validated_yet_says_so(stage, monkeypatch):
    stopped_at(1, monkeypatch, stage)
    with pytest.raises(InputError, match="its training has not validated yet"):
        load(stage.settings.output)


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr("codegrid.usable.PAUSE", 0)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("old")
    seen = []

    def read(folder):
        seen.append((folder / "config.json").read_text())
        if len(seen) == 1:
            (folder / "config.json").unlink()
            (folder / "config.json").write_text("new one")
            raise InputError("old settings, new weights")
        return seen[-1]

    assert load_usable(tmp_path, read) == "new one" and seen == ["old", "new one"]


def test_a_damaged_model_is_read_once(tmp_path):
    seen = []
    with pytest.raises(InputError, match="no folder"):
        load_usable(tmp_path, lambda folder: (seen.append(folder), load(folder / "nowhere")))
    assert len(seen) == 1


def test_what_a_user_laid_beside_the_models_so_far_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text("not ours")
    (tmp_path / "best").mkdir()
    (tmp_path / "last").symlink_to(tmp_path / "elsewhere")
    for name in ("config.json", "notes.txt"):
        (tmp_path / "best" / name).write_text("")
    remove_usable(tmp_path)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["notes.txt"]
    assert (tmp_path / "elsewhere" / "config.json").exists()


def test_a_stopped_run_is_finished_at_will_and_says_how_far_it_came(stage, monkeypatch, capsys):
    stopped_at(4, monkeypatch, stage)
    trained = stage.train(replace(stage.settings, finish_now=True))
    told = load(stage.settings.output).provenance
    assert [row["step"] for row in told["history"]] == [2, 4, 5] and told["steps"] == 6
    assert trained.step == told["step"] and str(trained.folder) == stage.settings.output
    assert f"after {trained.step} of 6 steps" in capsys.readouterr().out
    assert stage.train(stage.settings) == trained and "finished" in capsys.readouterr().out
    assert trained.metrics[stage.criterion] > 0
    assert not (trained.folder / "last").exists()


def test_sigusr1_ends_a_run_after_its_step_as_often_as_it_comes(tmp_path):
    class Enough(Toy):
        def after_step(self, step, seed):
            super().after_step(step, seed)
            if step in (2, 3):
                os.kill(os.getpid(), signal.SIGUSR1)
                os.kill(os.getpid(), signal.SIGUSR1)

    history = train_toy(tmp_path, Enough())
    assert [row["step"] for row in history] == [2, 4]
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000004"]


def test_a_request_to_stop_comes_before_one_to_finish():
    with StopSignals(finish=True) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM


def test_a_run_that_has_not_begun_cannot_be_finished(tmp_path):
    with pytest.raises(InputError, match="no training state: `finish_now` is for a run that was stopped"):
        train_toy(tmp_path, Toy(), finish_now=True)


def test_more_steps_at_a_constant_rate_end_as_a_longer_run(stage, tmp_path, monkeypatch):
    its = replace(stage.settings, lr_schedule="constant", steps=2)
    stage.train(replace(its, output=str(tmp_path / "whole"), steps=4))
    stage.train(its)
    with pytest.raises(InputError, match="made with steps 2, not 1"):
        stage.train(replace(its, steps=1))
    stopped_at(3, monkeypatch, stage, lr_schedule="constant", steps=4)
    assert load(its.output).provenance["steps"] == 2, "the finished model serves until there is another"
    stage.train(replace(its, steps=4))
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "run")


def test_a_quantizer_that_cools_over_the_run_is_not_trained_for_more_steps(bars_file, tmp_path):
    options = {"hidden_channels": 8, "embedding_dim": 4, "num_embeddings": 8}
    its = TrainTokenizer(
        dataset="npz", data_root=str(bars_file), output=str(tmp_path), options=options, quantizer="gumbel", steps=2,
        lr_schedule="constant",
    )  # fmt: skip
    train_tokenizer(its)
    with pytest.raises(InputError, match="made with quantizer_steps 2, not 4"):
        train_tokenizer(replace(its, steps=4))


def test_more_steps_on_a_cosine_are_refused_and_so_is_another_rate(tmp_path):
    train_toy(tmp_path, Toy(), steps=2)
    for change, words in (({"steps": 9}, r"steps 2, not 9 \(unless `lr_schedule` is constant"), ({"lr": 0.5}, "lr")):
        with pytest.raises(InputError, match=f"made with {words}.*another `output` with `init_from`"):
            train_toy(tmp_path, Toy(), **{"steps": 2, **change})


def test_more_steps_need_the_training_state(tmp_path):
    train_toy(tmp_path, Toy(), lr_schedule="constant", steps=2)
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "finished": True}))
    for path in tmp_path.glob("state/*/*"):
        path.unlink()
    with pytest.raises(InputError, match=r"no longer holds a training state.*`init_from`"):
        train_toy(tmp_path, Toy(), lr_schedule="constant", steps=3)


def test_metrics_are_a_line_for_each_reported_step_without_repetition(tmp_path, monkeypatch):
    def rows_of(folder):
        text = (folder / "metrics.jsonl").read_text()
        return [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in text.splitlines()]

    its = {"save_every": 10, "validate_every": 8}
    history = train_toy(tmp_path / "whole", Toy(), **its)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_state(patch, 1)
        train_toy(tmp_path / "killed", Toy(), **its)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12}\n{"step": 3, "los')  # of work that was lost, and cut
    train_toy(tmp_path / "killed", Toy(), **its)
    rows = rows_of(tmp_path / "killed")
    assert [row["step"] for row in rows] == [row["step"] for row in history]
    assert rows[-1].keys() == history[-1].keys() | {"lr", "critic_lr", "points/s", "waiting"}
    timed = ("points/s", "waiting")
    for one, other in zip(rows, rows_of(tmp_path / "whole"), strict=True):
        assert all(one[name] == other[name] for name in one if name not in timed)


def test_a_run_that_starts_from_another_model_goes_on_as_any_other(stage, tmp_path, monkeypatch):
    first = str(tmp_path / "first")
    stage.train(replace(stage.settings, output=first, steps=2))
    its = replace(stage.settings, init_from=first, steps=3, lr=1e-4, options={})  # which are those of the first
    stage.train(replace(its, output=str(tmp_path / "whole")))
    stopped_at(2, monkeypatch, stage, init_from=first, steps=3, lr=1e-4, options={})
    stage.train(its)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "run")
    assert load(its.output).provenance["init_from"] == load(first).fingerprint()
    with pytest.raises(InputError, match="made with init_from"):
        stage.train(replace(its, init_from=None, options=stage.settings.options))
