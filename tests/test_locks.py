"""Whose a folder is: one run at a time in it, and nothing of others touched, whatever lies or points there."""

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from codegrid.errors import InputError
from codegrid.files import open_plain, read_plain, remove_folder, write_folder
from codegrid.locks import LOCK, OWNER, check_held, hold, releasing

GONE = 2**22 + 1  # above every process number of Linux


@pytest.fixture(autouse=True)
def released():
    with releasing():
        yield


@pytest.fixture
def without_locks(monkeypatch):
    """A disk that has no file locks."""

    def refuse(*args):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)


def write(folder, name="new", index=""):
    with write_folder(folder, index) as staging:
        (staging / name).write_text("new")


def test_files_in_folders_are_written_beside_what_is_there_and_a_failure_leaves_no_folder(tmp_path):
    write(tmp_path / "a" / "inner", "old")
    with write_folder(tmp_path / "a") as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "new").write_text("new")
    assert sorted(path.name for path in (tmp_path / "a" / "inner").iterdir()) == ["new", "old"]
    with pytest.raises(ZeroDivisionError), write_folder(tmp_path / "b") as staging:
        (staging / "new").write_text("new")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_new_folder_of_files_is_never_half_there(tmp_path, monkeypatch):
    move, moved = os.replace, []

    def stopped(source, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        move(source, target)

    with pytest.raises(KeyboardInterrupt), write_folder(tmp_path / "a", "index.json") as staging:
        (staging / "pictures" / "cat").mkdir(parents=True)
        for name in ("pictures/1.png", "pictures/cat/2.png", "index.json"):
            (staging / name).write_text(name)
        monkeypatch.setattr(os, "replace", stopped)
    found = {path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*.*")}
    assert found == {"pictures/1.png", "pictures/cat/2.png"}  # no index: it is not complete


def test_a_folder_is_free_again_when_the_function_that_held_it_has_ended(tmp_path):
    @releasing()
    def work(folder, fails):
        hold(folder)
        assert (folder / LOCK).exists()
        if fails:
            raise ZeroDivisionError

    work(tmp_path, False)
    with pytest.raises(ZeroDivisionError):
        work(tmp_path, True)
    work(tmp_path / "made", False)
    assert not list(tmp_path.iterdir()), "an empty folder that was made for nothing goes, too"


def test_what_was_held_before_stays_held(tmp_path):
    hold(tmp_path)
    with releasing():
        hold(tmp_path)
        hold(tmp_path / "inner")
    assert (tmp_path / LOCK).exists() and not (tmp_path / "inner").exists()


def test_of_two_threads_that_take_a_folder_at_once_one_gets_it(tmp_path):
    both, held = threading.Barrier(2, timeout=60), []

    def take(folder):
        with releasing():
            both.wait()
            with suppress(InputError):
                hold(folder)
                held.append(folder)
            both.wait()  # neither lets go before the other has tried

    for number in range(50):
        threads = [threading.Thread(target=take, args=(tmp_path / str(number),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(held) == len(set(held)) == 50


def test_another_thread_is_another_run(tmp_path):
    refused = []

    def try_it():
        try:
            hold(tmp_path)
        except InputError as error:
            refused.append(str(error))

    hold(tmp_path)
    other = threading.Thread(target=try_it)
    other.start()
    other.join()
    assert "in use by another run in another thread" in refused[0]


@pytest.mark.parametrize("kind", ["link", "hard link", "own notes", "folder", "pipe", "socket"])
def test_a_lock_that_is_not_ours_is_refused_and_left_alone(tmp_path, kind, request):
    target, lock = tmp_path / "target", tmp_path / "run" / LOCK
    target.write_text("process of mine")  # which reads as a lock of ours
    lock.parent.mkdir()
    if kind == "socket":
        listener = socket.socket(socket.AF_UNIX)
        request.addfinalizer(listener.close)
    {
        "link": lambda: lock.symlink_to(target),
        "hard link": lambda: os.link(target, lock),
        "own notes": lambda: lock.write_text("mine"),
        "folder": lock.mkdir,
        "pipe": lambda: os.mkfifo(lock),
        "socket": lambda: listener.bind(os.path.relpath(lock)),
    }[kind]()
    with pytest.raises(InputError, match=r"\.lock is not a lock file of codegrid"):
        hold(lock.parent)
    assert target.read_text() == "process of mine" and os.path.lexists(lock)


def test_a_disk_without_locks_keeps_the_second_run_out_too(tmp_path, without_locks, capsys):
    hold(tmp_path)
    assert "has no file locks" in capsys.readouterr().err and not (tmp_path / LOCK).exists()
    other = "import sys, fcntl\nfcntl.lockf = lambda *a: (_ for _ in ()).throw(OSError(37, ''))\n"
    other += "from codegrid.locks import hold\nhold(sys.argv[1])"
    refused = subprocess.run([sys.executable, "-c", other, tmp_path], capture_output=True, text=True)
    assert f"in use by another run (process {os.getpid()} on {socket.gethostname()};" in refused.stderr


@pytest.mark.parametrize(
    "holder,is_free",
    [
        (f"process {GONE} on {socket.gethostname()}", True),
        (f"process {os.getppid()} on {socket.gethostname()}", False),
        (f"process {GONE} on another-machine", False),
        ("", False),
    ],
)
def test_of_a_disk_without_locks_only_what_a_dead_process_left_is_taken_over(tmp_path, without_locks, holder, is_free):
    (tmp_path / OWNER).write_text(holder)
    if is_free:
        hold(tmp_path)
        assert f"process {os.getpid()}" in (tmp_path / OWNER).read_text()
    else:
        with pytest.raises(InputError, match=f"if it has ended, remove .*{OWNER}"):
            hold(tmp_path)
        assert (tmp_path / OWNER).read_text() == holder


def test_a_run_stays_in_its_folder_when_the_link_to_it_moves(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to("a")
    folder = hold(link)
    link.unlink()
    link.symlink_to("b")
    write(folder)
    assert (tmp_path / "a" / "new").exists() and not any((tmp_path / "b").iterdir())


def test_no_link_in_the_folder_of_a_run_is_written_behind(tmp_path):
    mine, run = tmp_path / "mine", tmp_path / "run"
    mine.mkdir()
    hold(run)
    (run / "state").symlink_to(mine)
    for folder in (run / "state", run / "state" / "step"):
        with pytest.raises(InputError, match="is a link, or behind one"):
            write(folder)
    (run / "new").symlink_to(tmp_path / "other")
    (run / ".partial").symlink_to(mine)
    write(run)
    assert not any(mine.iterdir()) and not (tmp_path / "other").exists()
    assert (run / "new").read_text() == "new" and not (run / "new").is_symlink()


def test_a_held_folder_that_was_replaced_is_noticed(tmp_path):
    run = hold(tmp_path / "run")
    run.rename(tmp_path / "elsewhere")
    for folder in (run, run / "state"):
        with pytest.raises(InputError, match="was removed or replaced"):
            check_held(folder)


def test_only_files_of_ones_own_names_are_removed(tmp_path):
    for name in ("state.json", "notes.txt"):
        (tmp_path / "step" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "step" / name).write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "step")
    remove_folder(tmp_path / "link", ["notes.txt"])
    remove_folder(tmp_path / "step", ["state.json", "missing"])
    assert [path.name for path in (tmp_path / "step").iterdir()] == ["notes.txt"] and (tmp_path / "link").is_symlink()
    (tmp_path / "step" / "notes.txt").unlink()
    remove_folder(tmp_path / "step", [])
    assert not (tmp_path / "step").exists()


@pytest.mark.parametrize(
    "kind,make",
    [("a pipe", os.mkfifo), ("a folder", os.mkdir), ("a device", lambda path: path.symlink_to("/dev/zero"))],
)
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, kind, make):
    make(tmp_path / "state.json")
    with pytest.raises(InputError, match=f"state.json is {kind}, not a file"):
        read_plain(tmp_path / "state.json", 100)


def test_a_pipe_that_takes_a_files_place_at_the_last_moment_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("codegrid.files.os.stat", lambda path: os.stat_result([stat.S_IFREG, *[0] * 9]))
    with pytest.raises(InputError, match="is a pipe"):
        open_plain(tmp_path / "pipe")


def test_a_file_is_read_up_to_a_length(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_plain(Path(tmp_path / "file"), 5) == b"12345"
    assert read_plain(tmp_path / "file", 2**50) == b"12345", "memory is taken for all that may be read"
    with pytest.raises(InputError, match="at most 4 are read"):
        read_plain(tmp_path / "file", 4)
