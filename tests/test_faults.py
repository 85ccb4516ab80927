"""What becomes of runs that are stopped, killed, or robbed of their disk. `benchmarks/faults.py` is the long form."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY_PRIOR, TINY_TOKENIZER
from safetensors.torch import load_file

from codegrid.errors import InputError
from codegrid.locks import hold, releasing
from codegrid.pipelines.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
HOLDER = """
import os, sys, time
from codegrid.locks import hold
hold(sys.argv[1])
if not os.fork():  # a data loading worker, which outlives the run
    time.sleep(30)
print("held", os.getpid(), flush=True)
time.sleep(30)
"""
COMMANDS = ("train_tokenizer", "export_codes", "train_prior", "sample")  # those that write for long


@pytest.fixture(scope="module")
def flags(bars_file, small_run):
    """The command line of each command that writes for long, but --output."""
    data = ("--dataset", "npz", "--data-root", bars_file)
    parts = ("--tokenizer", small_run / "tokenizer")
    return {
        "train_tokenizer": (*data, *TINY_TOKENIZER, "--save-every", 8),
        "export_codes": (*data, *parts),
        "train_prior": ("--codes", small_run / "codes", *TINY_PRIOR, "--save-every", 6),
        "sample": (*parts, "--prior", small_run / "prior", "--num-samples", 9, "--shard-size", 4),
    }


@pytest.fixture
def tokenizer_flags(flags):
    return flags["train_tokenizer"]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """The folder for what each command leaves when nothing goes wrong."""
    return tmp_path_factory.mktemp("wholes")


@pytest.fixture
def whole_of(wholes, flags, run_script):
    """Call for the folder of one command, which runs when it is first asked for."""

    def run(command):
        if not (wholes / command).exists():
            assert run_script(command, *flags[command], "--output", wholes / command).code == 0
        return wholes / command

    return run


def model_in(folder):
    return load_file(folder / "model.safetensors")


def at_step(monkeypatch, number, act):
    """Let something happen within a training step, the first being 1."""
    find = Trainer.find_gradients

    def find_and_act(self, batch, step):
        figures = find(self, batch, step)
        if step + 1 == number:
            act()
        return figures

    monkeypatch.setattr(Trainer, "find_gradients", find_and_act)


def fail():
    raise ZeroDivisionError


@pytest.mark.parametrize("command,step", [("train_tokenizer", 17), ("train_prior", 13)])
def test_a_killed_run_ends_as_one_that_never_stopped(command, step, flags, whole_of, tmp_path, run_script, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        at_step(patch, step, fail)
        run_script(command, *flags[command], "--output", tmp_path)
    assert run_script(command, *flags[command], "--output", tmp_path).code == 0
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / name).read_bytes() == (whole_of(command) / name).read_bytes()


@pytest.mark.parametrize("number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_asked_to_end_saves_its_step_and_continues_from_there(
    number, code, tokenizer_flags, whole_of, tmp_path, run_script, monkeypatch
):
    with monkeypatch.context() as patch:
        at_step(patch, 13, lambda: os.kill(os.getpid(), number))
        stopped = run_script("train_tokenizer", *tokenizer_flags, "--output", tmp_path)
    assert stopped.code == code and "stopped and saved; run the same command again to continue" in stopped.err
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["step-00000008", "step-00000013"]
    assert run_script("train_tokenizer", *tokenizer_flags, "--output", tmp_path).code == 0
    whole, stopped = model_in(whole_of("train_tokenizer")), model_in(tmp_path)
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


@pytest.mark.parametrize(
    "command,number,words",
    [
        ("train_tokenizer", 28, "the disk is full"),
        ("train_tokenizer", 30, "is read-only"),
        ("train_tokenizer", 5, "reports an error"),
        ("export_codes", 28, "the disk is full"),
        ("train_prior", 28, "the disk is full"),
        ("sample", 28, "the disk is full"),
    ],
)
def test_a_disk_that_fails_while_a_command_writes_is_one_line_and_nothing_is_lost(
    command, number, words, flags, whole_of, tmp_path, run_script, monkeypatch
):
    flush, flushed = os.fsync, []

    def fail_later(descriptor):
        flushed.append(descriptor)
        if len(flushed) > 3:
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_later)
        failed = run_script(command, *flags[command], "--output", tmp_path)
    assert failed.code == 2 and words in failed.err.strip().splitlines()[-1] and "Traceback" not in failed.err
    assert run_script(command, *flags[command], "--output", tmp_path).code == 0
    whole = whole_of(command)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}
    for path in whole.glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_a_folder_that_disappears_is_not_made_again(tokenizer_flags, tmp_path, run_script, monkeypatch):
    at_step(monkeypatch, 13, lambda: (tmp_path / "run").rename(tmp_path / "elsewhere"))
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
    with releasing():
        hold(folder)
    holder.stdout.close()
    assert not any(folder.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_writes_for_long_keeps_others_out(command, flags, tmp_path, run_script):
    output = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, output], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    holder.stdout.readline()
    refused = run_script(command, *flags[command], "--output", output)
    assert refused.code == 2 and "in use by another run" in refused.err
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert run_script(command, *flags[command], "--output", output).code == 0
    assert not (output / ".lock").exists()


def test_verbose_shows_where_an_error_of_the_user_came_from(tokenizer_flags, tmp_path, run_script):
    wrong = (*tokenizer_flags, "--shift", 12, "--output", tmp_path)
    refused = run_script("train_tokenizer", *wrong)
    assert refused.code == 2 and "--shift 12" in refused.err and "Traceback" not in refused.err
    shown = run_script("train_tokenizer", *wrong, "-v")
    assert shown.code == 2 and "Traceback" in shown.err and shown.err.strip().splitlines()[-1].startswith("error: ")


def test_an_error_of_ours_keeps_its_traceback(tokenizer_flags, tmp_path, run_script, monkeypatch):
    at_step(monkeypatch, 2, fail)
    with pytest.raises(ZeroDivisionError):
        run_script("train_tokenizer", *tokenizer_flags, "--output", tmp_path)


@pytest.fixture
def broken_off(tokenizer_flags, tmp_path, run_script, monkeypatch):
    """A run of the tokenizer that ended in its 17th step, with the states of steps 8 and 16."""
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        at_step(patch, 17, fail)
        run_script("train_tokenizer", *tokenizer_flags, "--output", tmp_path)
    return tmp_path


def test_a_damaged_training_state_is_skipped_for_the_one_before(broken_off, tokenizer_flags, run_script):
    states = sorted((broken_off / "state").iterdir())
    assert [state.name for state in states] == ["step-00000008", "step-00000016"]
    (states[1] / "state.safetensors").write_bytes(b"cut")
    half = broken_off / "state" / "step-00000009" / ".partial"  # what a killed run left half-written
    half.mkdir(parents=True)
    (half / "state.json").write_text("{}")
    result = run_script("train_tokenizer", *tokenizer_flags, "--output", broken_off)
    assert result.code == 0 and "skipping a damaged training state" in result.out
    assert (broken_off / "model.safetensors").exists() and not (broken_off / "state").exists()


def test_a_run_without_a_sound_state_says_that_it_starts_again(broken_off, tokenizer_flags, run_script):
    for path in (broken_off / "state").glob("*/state.safetensors"):
        path.write_bytes(b"")
    result = run_script("train_tokenizer", *tokenizer_flags, "--output", broken_off)
    assert result.code == 0 and "no undamaged training state is left: starting from the first step" in result.out
