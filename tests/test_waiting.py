"""Nothing is waited for without end, and no reader, terminal or variable that is gone ends a run."""

import errno
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from codegrid.data import loading
from codegrid.data.images import ImageBatch
from codegrid.data.loading import ignore_in_worker, load_batches
from codegrid.errors import remedy_for
from codegrid.pipelines.running.cli import is_main_process
from codegrid.pipelines.running.processes import broadcast_from_main
from codegrid.pipelines.running.stopping import StopSignals

ALONE, ONE_OF_TWO = SimpleNamespace(num_processes=1), SimpleNamespace(num_processes=2)
PRINTING = """
import sys
from codegrid.console import steady_streams
steady_streams()
for number in range(20_000):
    print("3×5", number)
print("ended", file=sys.stderr)
open(sys.argv[1], "w").write("ended")
"""


@pytest.mark.parametrize(
    "shell",
    ["{} | head -1", "{} >&-", "{} 2>&- >/dev/null", "{} <&- >&- 2>&-", "PYTHONIOENCODING=ascii {} >/dev/null"],
)
def test_a_program_prints_on_whatever_becomes_of_its_reader(tmp_path, shell):
    (tmp_path / "printing.py").write_text(PRINTING)
    command = shell.format(f"{sys.executable} {tmp_path / 'printing.py'} {tmp_path / 'file'}")
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr in ("ended\n", "")
    assert (tmp_path / "file").read_text() == "ended"


def test_help_may_be_read_to_its_first_line():
    command = f"{sys.executable} -c 'from codegrid.command import main; main()' --help | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "usage: codegrid COMMAND [FLAGS]\n", "")


class Pictures:
    """A data set that is read by workers."""

    on_demand = True

    def __len__(self):
        return 8

    def batch(self, indices):
        images = torch.tensor(indices, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
        return ImageBatch(images, None)


def test_batches_come_through_a_pipe_where_processes_have_no_memory_to_share(monkeypatch):
    piped = []
    real = torch.Tensor.numpy
    monkeypatch.setattr(loading, "_shared_room", lambda: 100)
    monkeypatch.setattr(loading, "get_worker_info", lambda: SimpleNamespace(num_workers=1))
    monkeypatch.setattr(torch.Tensor, "numpy", lambda tensor: (piped.append(1), real(tensor))[1])
    (batch,) = load_batches(Pictures(), [[1, 2]])
    assert piped and isinstance(batch, ImageBatch) and batch.images[:, 0, 0, 0].tolist() == [1, 2]


def test_workers_that_share_memory_and_those_that_do_not_give_the_same(monkeypatch):
    for room in (float("inf"), 0):
        monkeypatch.setattr(loading, "_shared_room", lambda room=room: room)
        batches = list(load_batches(Pictures(), [[0, 1], [5]], num_workers=1))
        assert [batch.images.sum().item() for batch in batches] == [48, 240]


class Failing(Pictures):
    def batch(self, indices):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "picture.png")


def test_an_error_of_the_disk_in_a_worker_is_that_error():
    with pytest.raises(OSError) as error:
        list(load_batches(Failing(), [[0]], num_workers=1))
    assert error.value.errno == errno.EIO and error.value.filename == "picture.png"


class Killing(Pictures):
    def batch(self, indices):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_a_line():
    with pytest.raises(RuntimeError) as error:
        list(load_batches(Killing(), [[0]], num_workers=1))
    assert remedy_for(error.value).startswith(
        "a process that reads data was killed"
    ) and "`num_workers` 0" in remedy_for(error.value)


def test_a_worker_lives_through_the_first_signal_to_end_and_not_through_the_second():
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        ignore_in_worker(0)
        os.write(tell, b"1")
        while signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
            time.sleep(0.001)
        os.write(tell, b"2")
        while True:
            time.sleep(1)
    for expected in (b"1", b"2"):
        assert os.read(told, 1) == expected
        os.kill(child, signal.SIGTERM)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
    os.close(told)
    os.close(tell)


def signalled(count):
    """Numbers, of which the second is waited for for ever."""
    yield 0
    os.kill(os.getpid(), signal.SIGTERM)
    if count == 1:
        time.sleep(60)
    yield 1


@pytest.mark.parametrize("accelerator,expected", [(ALONE, [0]), (ONE_OF_TWO, [0, 1])])
def test_a_signal_ends_the_wait_of_a_process_that_is_alone(accelerator, expected):
    with StopSignals() as signals:
        assert list(signals.until_stopped(signalled(accelerator.num_processes), accelerator)) == expected
    assert signals.received == signal.SIGTERM and bool(signals.interrupted) == (accelerator is ALONE)


def test_what_the_disk_says_to_the_main_process_is_said_to_all(monkeypatch):
    def decide():
        raise OSError(errno.ENOSPC, "full")

    sent = []
    monkeypatch.setattr(
        "codegrid.pipelines.running.processes.broadcast_object_list", lambda outcome: sent.extend(outcome)
    )
    with pytest.raises(OSError, match="full"):
        broadcast_from_main(SimpleNamespace(is_main_process=True), decide)
    assert sent[0].errno == errno.ENOSPC


@pytest.mark.parametrize(
    "variables,is_main", [({}, True), ({"RANK": "1"}, True), ({"RANK": "1", "WORLD_SIZE": "2"}, False)]
)
def test_a_rank_that_was_left_in_the_environment_makes_no_second_process(variables, is_main, monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() == is_main


@pytest.mark.parametrize(
    "error,words",
    [
        (RuntimeError("can't start new thread"), "no more threads can be started"),
        (RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234"), "another process of this run has ended"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "set TMPDIR"),
        (RuntimeError("Could not determine home directory."), "set HOME"),
        (OSError("Matplotlib requires a writable folder; set MPLCONFIGDIR"), "set TMPDIR"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0: a fault of ours"), ""),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "not enough memory"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ""),
    ],
)
def test_errors_of_other_libraries_that_a_user_can_help_have_a_remedy(error, words):
    assert words in remedy_for(error) and bool(words) == bool(remedy_for(error))
