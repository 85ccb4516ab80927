"""Commands in processes that begin where everything is imported already: they start in a moment, and can be killed.

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
SILENT = {".lock", "run.json", "settings.yaml", "metrics.jsonl"}  # the command line, its place, and how fast it went
WHOLE, REFUSED = "whole", "refused"
Work = Callable[[], object]


def import_everything() -> None:
    """Import whatever the commands import when they run."""
    for name in (*COMMANDS, *BODIES):
        importlib.import_module(f"codegrid.pipelines.{name}")
    for kind in TABLES.values():
        list(kind.values())


class Child:
    """A command that runs, with what it prints in a file.

    Args:
        command: its name, `train_prior` for example; or a function.
        flags: its command line.
        log: a file for all that it prints.
        prepare: is called in the new process first.
    """

    peak = 0  # bytes of memory at most, once it has been waited for
    reaped = False  # whether it has been waited for

    def __init__(self, command: str | Work, flags: list[str], log: Path, prepare: Work = lambda: None) -> None:
        self.log = log
        self.born = time.time()
        self.pid = os.fork()
        if not self.pid:
            _become(command, flags, log, prepare)

    def ended(self) -> bool:
        """Whether it has ended, without waiting."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self, seconds: float = 300) -> int:
        """Its exit code, negative for a signal; one that hangs is killed."""
        end = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < end:
            time.sleep(0.002)
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
        _, status, used = os.wait4(self.pid, 0)
        self.peak, self.reaped = 1024 * used.ru_maxrss, True
        return os.waitstatus_to_exitcode(status)

    def stop(self) -> None:
        """Halt it where it is, so that one can look."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def go_on(self) -> None:
        """End the halt, if there is one."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.reaped = True

    def progress(self) -> tuple[int, int]:
        """How much was done when it began to tell, and how much is done."""
        told = [int(done.replace(",", "")) for done in re.findall(r": ([\d,]+) of [\d,]+, \d", self.output())]
        return (told[0], told[-1]) if told else (0, 0)

    def output(self) -> str:
        """Everything that it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def run(command: str | Work, flags: list[str], log: Path, prepare: Work = lambda: None) -> tuple[int, str]:
    """Run a command to its end: its exit code and what it printed."""
    child = Child(command, flags, log, prepare)
    code = child.wait()
    return code, child.output()


def verdict(code: int, printed: str, is_right: bool, words: str = "") -> str:
    """Say how a command ended: `WHOLE`, with the right result; `REFUSED`, in one line; or what is wrong about it.

    Args:
        words: of that line.
    """
    lines = printed.replace("\r", "\n").strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if "Traceback" in printed or code not in (0, 2) or len(errors) != (code == 2):
        return f"exit code {code}: {lines[-1][-200:] if lines else 'not a word'}"
    if code:
        return REFUSED if words in errors[0] else f"refused for another reason: {errors[0]}"
    return WHOLE if is_right else "another result, and not a word"


def content_of(folder: Path) -> dict[str, str]:
    """A digest of every file below a folder, by name; of archives the arrays, whose dates do not matter."""
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
    """Hear the signals that a shell lets programs in the background, or after nohup, ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _become(command: str | Work, flags: list[str], log: Path, prepare: Work) -> None:
    """Run in the new process, and end."""
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.close(output)
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", buffering=1)
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1)
        progress.SECONDS = progress.SHARE = 0.0  # every step is told
        hear_signals()
        prepare()
        if isinstance(command, str):
            sys.argv = [f"pipelines/{command}.py", *flags]
            command = importlib.import_module(f"codegrid.pipelines.{command}").main
        command()
        code = 0
    except InputError as error:  # a function's; commands tell their own
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
