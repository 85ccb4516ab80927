"""Commands in forked processes in which everything is imported already: they start at once, and can be killed.

For systems that can fork. The process that forks must not have computed with torch before.
"""

import hashlib
import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from codegrid import progress
from codegrid.errors import InputError
from codegrid.registry import TABLES

COMMANDS = ("train_tokenizer", "export_codes", "train_prior", "sample", "decode_codes", "evaluate")
BODIES = (
    "training.tokenizer", "training.prior", "generation.encoding", "generation.sampling", "generation.decoding",
    "evaluation.run",
)  # fmt: skip
SILENT = {".lock", "run.json", "settings.yaml", "metrics.jsonl"}  # hold the command line, paths and speeds
WHOLE, REFUSED = "whole", "refused"
Work = Callable[[], object]


def import_everything() -> None:
    """Import everything that the commands import when they run."""
    for name in (*COMMANDS, *BODIES):
        importlib.import_module(f"codegrid.pipelines.{name}")
    for kind in TABLES.values():
        list(kind.values())


class Child:
    """A running command whose output goes to a file.

    Args:
        command: its name, for example `train_prior`; or a function.
        flags: its command line.
        log: a file for its output.
        prepare: called first in the new process.
    """

    peak = 0  # peak memory in bytes, known after `wait`
    reaped = False  # whether the process was waited for

    def __init__(self, command: str | Work, flags: list[str], log: Path, prepare: Work = lambda: None) -> None:
        self.log = log
        self.born = time.time()
        self.pid = os.fork()
        if not self.pid:
            _become(command, flags, log, prepare)

    def ended(self) -> bool:
        """Return whether it has ended, without waiting."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self, seconds: float = 300) -> int:
        """Return its exit code, negative for a signal; kill it if it hangs."""
        end = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < end:
            time.sleep(0.002)
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
        _, status, used = os.wait4(self.pid, 0)
        self.peak, self.reaped = 1024 * used.ru_maxrss, True
        return os.waitstatus_to_exitcode(status)

    def stop(self) -> None:
        """Halt it where it is, for inspection."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def go_on(self) -> None:
        """Let it continue, if it is halted."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.reaped = True

    def progress(self) -> tuple[int, int]:
        """Return how much was done at its first report, and how much at its last."""
        told = [int(done.replace(",", "")) for done in re.findall(r": ([\d,]+) of [\d,]+, \d", self.output())]
        return (told[0], told[-1]) if told else (0, 0)

    def output(self) -> str:
        """Return everything that it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def run(command: str | Work, flags: list[str], log: Path, prepare: Work = lambda: None) -> tuple[int, str]:
    """Run a command to its end, and return its exit code and its output."""
    child = Child(command, flags, log, prepare)
    code = child.wait()
    return code, child.output()


def verdict(code: int, printed: str, is_right: bool, words: str = "") -> str:
    """Return how a command ended: `WHOLE`, with the right result; `REFUSED`, with one line; or what is wrong.

    Args:
        words: words that the line must contain.
    """
    lines = printed.replace("\r", "\n").strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if "Traceback" in printed or code not in (0, 2) or len(errors) != (code == 2):
        return f"exit code {code}: {lines[-1][-200:] if lines else 'no message'}"
    if code:
        return REFUSED if words in errors[0] else f"refused for another reason: {errors[0]}"
    return WHOLE if is_right else "another result, and no message"


def content_of(folder: Path) -> dict[str, str]:
    """Return a digest of every file below a folder, by name; of archives only the arrays, since dates do not matter."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name in SILENT or ".partial" in path.parts:
            continue
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                content = b"".join(name.encode() + file[name].tobytes() for name in file.files)
        else:
            content = path.read_bytes()
        digests[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return digests


def hear_signals() -> None:
    """Restore the signals that shells make background programs ignore, and nohup too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _become(command: str | Work, flags: list[str], log: Path, prepare: Work) -> None:
    """Run the command in the new process, and exit."""
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.close(output)
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", buffering=1)
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1)
        progress.SECONDS = progress.SHARE = 0.0  # report every step
        hear_signals()
        prepare()
        if isinstance(command, str):
            sys.argv = [f"pipelines/{command}.py", *flags]
            command = importlib.import_module(f"codegrid.pipelines.{command}").main
        command()
        code = 0
    except InputError as error:  # raised by a function; commands print their own
        print(f"error: {error}", flush=True)
        code = 2
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # closed
                stream.flush()
        os._exit(code)
