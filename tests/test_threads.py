"""How many threads compute: those that are asked for, those of the run that goes on, or as many as cores are free."""

import math
import os
from types import SimpleNamespace

import pytest
import torch

from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.running import cores
from codegrid.pipelines.running.cores import Cores, choose_threads, find_cores, look
from codegrid.pipelines.running.device import choose_device, start_accelerator
from codegrid.pipelines.running.run_folder import Run
from codegrid.pipelines.running.settings import Compute
from codegrid.pipelines.running.threads import VARIABLES, find_threads, use_threads
from codegrid.tensors import read_json

CPU = Compute(device="cpu")


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of four cores, of which this process may use three. `others` compute so much a second on each."""
    now = SimpleNamespace(seconds=0.0, others=[0.0] * 4, niced=0.0, slept=0.0)

    def write():
        lines = ["cpu 1 2 3 4 5 6 7 8 9 10"]
        for number, share in enumerate(now.others):
            ticks = [share * now.seconds, now.niced * now.seconds, 0, 5 * now.seconds, 7, 0, 0, 0, 0, 0]
            lines.append(" ".join([f"cpu{number}", *(str(int(100 * each)) for each in ticks)]))
        (tmp_path / "stat").write_text("\n".join([*lines, "intr 5 0 0", "btime 1"]) + "\n")

    def wait(seconds):
        now.seconds += seconds
        write()

    def sleep(seconds):
        now.slept += seconds
        wait(seconds)

    now.wait = wait
    write()
    monkeypatch.setattr(cores, "PROC", tmp_path)
    monkeypatch.setattr(cores, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "time", SimpleNamespace(monotonic=lambda: now.seconds, sleep=sleep))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 3}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 100, raising=False)
    monkeypatch.setattr(os, "times", lambda: (0.5 * now.seconds, 0.0, 0.0, 0.0, now.seconds))
    return now


@pytest.mark.parametrize(
    "found, processes, count",
    [
        (Cores(2), 1, 2), (Cores(2, busy=1.0), 1, 1), (Cores(2, busy=0.4), 1, 2), (Cores(2, busy=2.0), 1, 1),
        (Cores(8, busy=0.05), 1, 8), (Cores(8, busy=0.5), 1, 7), (Cores(8, busy=3.02), 1, 5),
        (Cores(64, busy=9.0), 1, 8), (Cores(8, quota=2.0), 1, 2), (Cores(8, quota=2.6, busy=7.0), 1, 1),
        (Cores(8, quota=0.3), 1, 1), (Cores(8), 3, 2), (Cores(8, quota=4.0), 2, 2), (Cores(2), 4, 1),
    ],
)  # fmt: skip
def test_there_are_as_many_threads_as_free_cores_and_at_least_one(found, processes, count, monkeypatch):
    monkeypatch.setattr(cores, "find_cores", lambda watch: found)
    chosen, why = choose_threads(8 if found.allowed > 8 else found.allowed, processes)
    assert chosen == count and bool(why) == (count < min(8, found.allowed))


def test_others_are_watched_on_the_cores_of_this_process_since_the_last_look(machine):
    look()
    machine.others = [1.0, 0.25, 1.0, 0.0]  # the third one is for others, and half a core this process takes itself
    machine.wait(4)
    assert find_cores() == Cores(3, math.inf, pytest.approx(0.75)) and not machine.slept


@pytest.mark.parametrize("seconds", [0, 1000])
def test_a_last_look_that_is_long_ago_or_just_now_is_followed_by_a_short_one(machine, seconds):
    machine.others = [1.0] * 4
    look()
    machine.wait(seconds)
    assert find_cores().busy == pytest.approx(2.5, rel=0.1) and 0 < machine.slept < 0.5


def test_programs_of_low_priority_are_not_counted_but_by_one_that_has_it_too(machine, monkeypatch):
    machine.niced = 1.0
    look()
    machine.wait(4)
    assert find_cores().busy == 0
    monkeypatch.setattr(os, "getpriority", lambda which, who: 10)
    look()
    machine.wait(4)
    assert find_cores().busy == pytest.approx(2.5)


@pytest.mark.parametrize(
    "groups, files, quota",
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/slice/unit", {"slice/unit/cpu.max": "max 100000", "slice/cpu.max": "200000 100000"}, 2),
        ("4:memory:/\n2:cpu,cpuacct:/a/b", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ("2:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("0::/../x\nodd", {"cpu.max": "odd"}, math.inf),
    ],
)  # fmt: skip
def test_the_limits_of_control_groups_are_found_in_either_version(machine, tmp_path, groups, files, quota):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(groups + "\n")
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    assert find_cores().quota == quota


@pytest.mark.parametrize("content", ["", "cpu0 many", None])
def test_a_system_that_does_not_tell_leaves_the_threads_to_torch(machine, tmp_path, monkeypatch, content):
    if content is None:
        monkeypatch.delattr(os, "sched_getaffinity")
    else:
        (tmp_path / "stat").write_text(content)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert choose_threads(3) == (3, "")


def test_what_is_asked_for_comes_before_the_machine(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 5)
    monkeypatch.setattr("codegrid.pipelines.running.threads.choose_threads", lambda most, processes: (most - 2, "busy"))
    assert find_threads(CPU) == (3, "busy")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert find_threads(CPU) == (5, "")
    assert find_threads(Compute(threads=7)) == (7, "")


@pytest.mark.parametrize(
    "again, environment, expected",
    [
        ({}, {}, (4, "as when this run began; 3 are usual here")), ({"threads": 2}, {}, (2, "")),
        ({"overwrite": True}, {}, (1, "")), ({}, {"WORLD_SIZE": "2"}, (1, "")), ({}, {"OMP_NUM_THREADS": "3"}, (3, "")),
    ],
)  # fmt: skip
def test_a_run_goes_on_with_the_threads_that_it_began_with(tmp_path, monkeypatch, again, environment, expected):
    settings = {"tokenizer": "tokenizer", "output": str(tmp_path / "run"), "device": "cpu"}
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    Run(settings["output"], Evaluate(**settings)).start()
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    monkeypatch.setattr("codegrid.pipelines.running.threads.choose_threads", lambda most, processes: (1, ""))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_threads(Evaluate(**settings, **again)) == expected


def test_a_command_records_its_threads(small_run):
    record = read_json(small_run / "tokenizer" / "run.json")
    assert (record["threads"], record["processes"]) == (1, 1) and "threads" not in record["settings"]


def test_one_call_leaves_the_next_one_the_threads_of_the_program(monkeypatch):
    monkeypatch.setattr("codegrid.pipelines.running.threads.choose_threads", lambda most, processes: (most, ""))
    usual = torch.get_num_threads()
    use_threads(usual + 1, "")
    assert torch.get_num_threads() == usual + 1 and find_threads(CPU) == (usual, "")


def test_as_many_as_asked_for_compute_on_the_cpu_beside_another_device(monkeypatch):
    monkeypatch.setattr("codegrid.pipelines.running.device.find_device", torch.device)  # as if it were there
    count = torch.get_num_threads() + 1
    choose_device(Compute(device="meta", threads=count))
    assert torch.get_num_threads() == count


def test_fewer_threads_than_usual_are_told_in_a_line_and_all_are_not(monkeypatch, capsys):
    monkeypatch.setattr("codegrid.pipelines.running.device.find_threads", lambda settings: (1, "others are at work"))
    start_accelerator(CPU)
    assert capsys.readouterr().out == "device: cpu, 1 thread: others are at work\n"
    choose_device(CPU)
    assert capsys.readouterr().out == "1 thread: others are at work\n"
    monkeypatch.setattr("codegrid.pipelines.running.device.find_threads", lambda settings: (1, ""))
    choose_device(CPU)
    assert not capsys.readouterr().out
