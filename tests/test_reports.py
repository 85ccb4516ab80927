"""How far a run is: reports in 80 columns, few lines in a log file, and the metrics as lines of JSON."""

import io
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from codegrid import load, progress
from codegrid.pipelines.running.cli import Stopped
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.training.log import describe
from codegrid.pipelines.training.prior import PriorObjective, train_prior
from codegrid.progress import progress_bar, time_left

FIGURES = {f"a_figure_of_training_{i}": 1234.5678 / 10**i for i in range(9)} | {"unused_entries": 12345}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    hands = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: hands.now)
    return hands


def test_a_report_fits_80_columns_and_says_where_the_run_is(clock):
    times = time_left(1500, 10_000, 1000, clock.now - 90)
    head, *rest = describe(1500, 10_000, times, {"step": 1500, **FIGURES}).splitlines()
    assert head == "step 1,500 of 10,000, 0:01:30, 0:25:30 left"
    assert max(map(len, rest)) <= 80 and len(rest) < len(FIGURES)
    said = "  ".join(rest)
    assert all(f"  {name} " in said for name in FIGURES) and " step " not in said
    assert "training_0 1,235" in said and "training_3 1.235" in said and "entries 12,345" in said


@pytest.mark.parametrize(
    "done,total,initial,words",
    [
        (0, 10, 0, "1:01:05"),
        (5, None, 0, "1:01:05"),
        (5, 10, 0, "1:01:05, 1:01:05 left"),
        (8, 8, 4, "1:01:05, 0:00:00 left"),
    ],
)
def test_the_rest_takes_as_long_as_what_is_done(done, total, initial, words, clock):
    assert time_left(done, total, initial, clock.now - 3665) == words


def test_a_log_file_gets_few_lines(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with progress_bar(total=100_000, initial=500, desc="sampling") as bar:
        for _ in range(99_500):
            clock.now += 1
            bar.update()
            bar.set_postfix(loss=1)
    lines = log.getvalue().splitlines()
    assert 10 < len(lines) < 70 and lines[0] == "sampling: 560 of 100,000, 0:01:00, 27:37:20 left"
    assert "\r" not in log.getvalue()


def test_short_work_leaves_no_line_in_a_log_file(capsys):
    assert list(progress_bar("abc", "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_reports_above_it(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    with progress_bar(total=3, desc="work") as bar:
        bar.update(3)
        progress.say("a report")
    assert "\ra report\n" in terminal.getvalue() and "work: 100%" in terminal.getvalue()


@pytest.fixture
def settings(small_run, tmp_path):
    return TrainPrior(
        codes=str(small_run / "codes"), output=str(tmp_path / "prior"), steps=40, batch_size=8, precision="fp32",
        save_every=20, options={"channels": 8, "num_layers": 2},
    )  # fmt: skip


def test_a_resumed_run_says_so_and_its_metrics_go_on(settings, tmp_path, monkeypatch, capsys):
    losses = PriorObjective.losses

    def stop(self, player, wrapped, batch, moment):
        if moment.step == 33:
            raise Stopped(15)
        return losses(self, player, wrapped, batch, moment)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(PriorObjective, "losses", stop)
        train_prior(settings)
    file = tmp_path / "prior" / "metrics.jsonl"
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()][-1] == 32, "the run was stopped later"
    file.write_text(file.read_text() + '{"step": 33, "tra')  # cut off
    capsys.readouterr()
    train_prior(settings)
    said = capsys.readouterr().out
    assert f"{tmp_path / 'prior'}: continuing from step 20 of 40\n" in said
    reports = [line for line in said.splitlines() if line.startswith(("step ", "  "))]
    assert "step 40 of 40, 0:0" in said and max(map(len, reports)) <= 80
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    measured = {row["step"]: row["bits_per_code"] for row in rows if "bits_per_code" in row}
    history = load(tmp_path / "prior").provenance["history"]
    assert measured == {row["step"]: row["bits_per_code"] for row in history} and len(measured) == 10
    steps = [row["step"] for row in rows]
    assert steps == sorted(steps)
    assert {"loss", "lr", "grids/s"} <= {name for row in rows for name in row}


def test_a_dry_run_of_training_says_what_it_would_do_and_writes_nothing(settings, tmp_path, capsys):
    train_prior(replace(settings, dry_run=True, batch_size=16))
    said = capsys.readouterr().out
    assert "grids of codes; " in said and "to validate on" in said
    assert "steps: 40 of 16 grids" in said and "weights" in said and "memory: about" in said
    assert said.splitlines()[-1] == "dry run: nothing was written" and not (tmp_path / "prior").exists()
