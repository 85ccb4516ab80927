"""What becomes of runs that are stopped, killed, or robbed of their disk. `benchmarks/faults.py` is the long form."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY_PRIOR, TINY_TOKENIZER
from safetensors.torch import load_file
from test_processes import ROOT

from codegrid.errors import InputError
from codegrid.locks import hold, release_all
from codegrid.pipelines.training.checkpoints import States, Trained

HOLDER = """
import os, sys, time
from codegrid.locks import hold
hold(sys.argv[1])
if not os.fork():  # a data loading worker, which outlives the run
    time.sleep(30)
print("held", os.getpid(), flush=True)
time.sleep(30)
"""


@pytest.fixture
def tokenizer_flags(bars_file):
    return ("--dataset", "npz", "--data-root", bars_file, *TINY_TOKENIZER, "--save-every", 8)


@pytest.fixture
def flags(tokenizer_flags, small_run):
    """The command line of each script that writes for long, but --output."""
    data = tokenizer_flags[:4]
    parts = ("--tokenizer", small_run / "tokenizer")
    return {
        "train_tokenizer": tokenizer_flags,
        "export_codes": (*data, *parts),
        "train_prior": ("--codes", small_run / "codes", *TINY_PRIOR, "--save-every", 6),
        "sample": (*parts, "--prior", small_run / "prior", "--num-samples", 9, "--shard-size", 4),
    }


def model_in(folder):
    return load_file(folder / "model.safetensors")


def at_step(monkeypatch, number, act):
    """Let something happen within a training step, the first being 1."""
    from codegrid.pipelines.training import loop as training

    find, steps = training._find_gradients, []

    def find_and_act(stage, *rest):
        figures = find(stage, *rest)
        steps.append(rest)
        if len(steps) == number:
            act(stage, figures)
        return figures

    monkeypatch.setattr(training, "_find_gradients", find_and_act)


@pytest.mark.parametrize("number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_asked_to_end_saves_its_step_and_goes_on_from_there(
    number, code, tokenizer_flags, tmp_path, run_script, monkeypatch
):
    run_script("train_tokenizer", *tokenizer_flags, "--output", tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_step(patch, 13, lambda stage, figures: os.kill(os.getpid(), number))
        stopped = run_script("train_tokenizer", *tokenizer_flags, "--output", tmp_path / "stopped")
    assert stopped.code == code and "stopped and saved; the same command goes on" in stopped.err
    states = sorted(path.name for path in (tmp_path / "stopped" / "state").iterdir())
    assert states == ["step-00000008", "step-00000013"]
    assert run_script("train_tokenizer", *tokenizer_flags, "--output", tmp_path / "stopped").code == 0
    whole, stopped = model_in(tmp_path / "whole"), model_in(tmp_path / "stopped")
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


def test_by_default_a_state_is_saved_after_seconds_and_not_after_steps(
    tokenizer_flags, tmp_path, run_script, monkeypatch
):
    saved, save = [], States.save
    monkeypatch.setattr(States, "save", lambda self, step, history: (saved.append(step), save(self, step, history)))
    monkeypatch.setattr("codegrid.pipelines.training.checkpoints.SECONDS", 0.0)
    flags = (*tokenizer_flags[:-2], "--output")
    assert run_script("train_tokenizer", *flags, tmp_path / "often").code == 0 and saved == list(range(1, 31))
    monkeypatch.setattr("codegrid.pipelines.training.checkpoints.SECONDS", 1000.0)
    saved.clear()
    assert run_script("train_tokenizer", *flags, tmp_path / "once").code == 0 and saved == [30]


@pytest.mark.parametrize("name,value", [("loss", float("nan")), ("gradient", float("inf"))])
def test_training_stops_at_the_step_at_which_a_figure_is_not_finite(
    name, value, tokenizer_flags, tmp_path, run_script, monkeypatch
):
    def spoil(stage, figures):
        target = figures["loss"] if name == "loss" else next(stage.model.parameters()).grad
        target.fill_(value)

    at_step(monkeypatch, 13, spoil)
    result = run_script("train_tokenizer", *tokenizer_flags, "--output", tmp_path)
    last = result.err.strip().splitlines()[-1]
    assert result.code == 2 and f"step 13: the {name} is {value}" in last and "step-00000008" in last
    (state,) = (tmp_path / "state").glob("step-*/state.safetensors")
    assert all(tensor.isfinite().all() for tensor in load_file(state).values() if tensor.is_floating_point())


@pytest.mark.parametrize("script", ["train_tokenizer", "export_codes", "train_prior", "sample"])
@pytest.mark.parametrize("number,words", [(28, "no room is left"), (30, "can only be read"), (5, "reports an error")])
def test_a_disk_that_fails_while_a_script_writes_is_one_line_and_nothing_is_lost(
    script, number, words, flags, tmp_path, run_script, monkeypatch
):
    assert run_script(script, *flags[script], "--output", tmp_path / "whole").code == 0
    flush, flushed = os.fsync, []

    def fail_later(descriptor):
        flushed.append(descriptor)
        if len(flushed) > 3:
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_later)
        failed = run_script(script, *flags[script], "--output", tmp_path / "failed")
    assert failed.code == 2 and words in failed.err.strip().splitlines()[-1] and "Traceback" not in failed.err
    assert run_script(script, *flags[script], "--output", tmp_path / "failed").code == 0
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in (tmp_path / "failed").iterdir()} == names
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "failed" / path.name).read_bytes()


def test_a_folder_that_disappears_is_not_made_again(tokenizer_flags, tmp_path, run_script, monkeypatch):
    at_step(monkeypatch, 13, lambda *args: (tmp_path / "run").rename(tmp_path / "elsewhere"))
    result = run_script("train_tokenizer", *tokenizer_flags, "--output", tmp_path / "run")
    assert result.code == 2 and "was removed or replaced" in result.err.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists() and (tmp_path / "elsewhere" / "state" / "step-00000008").is_dir()


def test_a_second_run_into_a_folder_is_refused_while_the_first_lives(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    pid = holder.stdout.readline().split()[1]
    with pytest.raises(InputError, match=f"in use by another run .process {pid}"):
        hold(folder)
    os.kill(holder.pid, signal.SIGKILL)  # its worker lives on
    holder.wait()
    hold(folder)
    release_all()
    holder.stdout.close()
    assert not any(folder.iterdir())


@pytest.mark.parametrize("script", ["train_tokenizer", "export_codes", "train_prior", "sample"])
def test_every_script_that_writes_for_long_keeps_others_out(script, flags, tmp_path, run_script):
    output = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, output], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    holder.stdout.readline()
    refused = run_script(script, *flags[script], "--output", output)
    assert refused.code == 2 and "in use by another run" in refused.err
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert run_script(script, *flags[script], "--output", output).code == 0
    assert not (output / ".lock").exists()


def test_verbose_shows_where_an_error_of_the_user_came_from(tokenizer_flags, tmp_path, run_script):
    wrong = (*tokenizer_flags, "--shift", 12, "--output", tmp_path)
    assert "Traceback" not in run_script("train_tokenizer", *wrong).err
    shown = run_script("train_tokenizer", *wrong, "-v")
    assert shown.code == 2 and "Traceback" in shown.err and shown.err.strip().splitlines()[-1].startswith("error: ")


def test_an_error_of_ours_keeps_its_traceback(tokenizer_flags, tmp_path, run_script, monkeypatch):
    def fail(*args):
        raise ZeroDivisionError

    at_step(monkeypatch, 2, fail)
    with pytest.raises(ZeroDivisionError):
        run_script("train_tokenizer", *tokenizer_flags, "--output", tmp_path)


def test_a_state_of_another_run_is_not_taken_for_ones_own(tokenizer_flags, tmp_path, run_script, monkeypatch):
    for name, seed in (("one", 1), ("two", 2)):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            at_step(patch, 17, lambda *args: 1 // 0)
            run_script("train_tokenizer", *tokenizer_flags, "--seed", seed, "--output", tmp_path / name)
    newest = "state/step-00000016"
    for file in ("state.json", "state.safetensors"):
        (tmp_path / "one" / newest / file).write_bytes((tmp_path / "two" / newest / file).read_bytes())
    result = run_script("train_tokenizer", *tokenizer_flags, "--seed", 1, "--output", tmp_path / "one")
    assert result.code == 0 and "state of another run" in result.out


def test_a_run_without_a_sound_state_says_that_it_starts_again(tokenizer_flags, tmp_path, run_script, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        at_step(patch, 17, lambda *args: 1 // 0)
        run_script("train_tokenizer", *tokenizer_flags, "--output", tmp_path)
    for path in (tmp_path / "state").glob("*/state.safetensors"):
        path.write_bytes(b"")
    result = run_script("train_tokenizer", *tokenizer_flags, "--output", tmp_path)
    assert result.code == 0 and "no sound training state is left: starting from the first step" in result.out


def test_a_state_that_is_saved_before_damaged_ones_is_kept(tmp_path):
    model = torch.nn.Linear(2, 2)
    states = States(tmp_path, "run", Trained({"model": model}, torch.optim.Adam(model.parameters())), every=1)
    model(torch.ones(1, 2)).sum().backward()
    states.trained.optimizer.step()
    for step in (100, 200):
        states.save(step, [])
        (tmp_path / f"step-{step:08d}" / "state.safetensors").write_bytes(b"")
    assert states.load() == (0, [])
    states.save(20, [{"step": 20}])
    assert states.load() == (20, [{"step": 20}])


def test_what_a_killed_run_left_half_written_is_cleared_away(tokenizer_flags, tmp_path, run_script, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        at_step(patch, 10, lambda *args: 1 // 0)
        run_script("train_tokenizer", *tokenizer_flags, "--output", tmp_path)
    half = tmp_path / "state" / "step-00000009" / ".partial"
    half.mkdir(parents=True)
    (half / "state.json").write_text("{}")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        at_step(patch, 10, lambda *args: 1 // 0)
        run_script("train_tokenizer", *tokenizer_flags, "--output", tmp_path)
    assert not half.parent.exists()


def test_two_processes_that_are_killed_end_as_two_that_never_stopped(bars_file, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    script = ["pipelines.train_tokenizer", "--dataset", "npz", "--data-root", str(bars_file), *TINY_TOKENIZER]
    options = {"cwd": ROOT, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stdout": subprocess.PIPE,
               "stderr": subprocess.STDOUT, "text": True}  # fmt: skip

    def start(name):
        return subprocess.Popen([*command, *script, "--save-every", "1", "--output", str(tmp_path / name)],
                                start_new_session=True, **options)  # fmt: skip

    killed = start("killed")
    while killed.poll() is None and not list((tmp_path / "killed").glob("state/step-*/state.json")):
        time.sleep(0.01)
    workers = [int(pid) for pid in Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()]
    for pid in (killed.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    for name in ("killed", "whole"):
        run = start(name)
        output = run.communicate(timeout=120)[0]
        assert run.returncode == 0 and "2 processes" in output, output[-2000:]
    whole, again = model_in(tmp_path / "whole"), model_in(tmp_path / "killed")
    assert all(torch.equal(whole[key], again[key]) for key in whole)
