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
from functools import partialmethod
from pathlib import Path

import numpy as np
from tqdm import tqdm

from codegrid.registry import TABLES

COMMANDS = ("train_tokenizer", "export_codes", "train_prior", "sample", "decode_codes", "evaluate")
BODIES = (
    "training.tokenizer", "training.prior", "generation.encoding", "generation.sampling", "generation.decoding",
    "evaluation.run",
)  # fmt: skip
SILENT = {".lock", "run.json", "metrics.jsonl"}  # the command line, and how fast it went


def import_everything() -> None:
    """Import whatever the commands import when they run."""
    for name in (*COMMANDS, *BODIES):
        importlib.import_module(f"codegrid.pipelines.{name}")
    for kind in TABLES.values():
        list(kind.values())


class Child:
    """A command that runs, with what it prints in a file.

    Args:
        command: its name, `train_prior` for example.
        flags: its command line.
        log: a file for all that it prints.
    """

    def __init__(self, command: str, flags: list[str], log: Path) -> None:
        self.log = log
        self.born = time.time()
        self.pid = os.fork()
        if not self.pid:
            _become(command, flags, log)

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
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def stop(self) -> None:
        """Halt it where it is, so that one can look."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def progress(self) -> tuple[int, int]:
        """Where the bar began, and where it is."""
        bars = re.findall(r"(\d+)/\d+ \[", self.output())
        return (int(bars[0]), int(bars[-1])) if bars else (0, 0)

    def output(self) -> str:
        """Everything that it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def run(command: str, flags: list[str], log: Path) -> tuple[int, str]:
    """Run a command to its end: its exit code and what it printed."""
    child = Child(command, flags, log)
    code = child.wait()
    return code, child.output()


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


def _become(command: str, flags: list[str], log: Path) -> None:
    """Run in the new process, and end."""
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        tqdm.__init__ = partialmethod(tqdm.__init__, mininterval=0)  # every step is told
        sys.argv = [f"pipelines/{command}.py", *flags]
        importlib.import_module(f"codegrid.pipelines.{command}").main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
