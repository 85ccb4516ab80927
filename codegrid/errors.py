"""The exception for errors that a user can fix, and remedies for errors of other libraries."""

import importlib
import re
from types import ModuleType


class InputError(ValueError):
    """An error in a setting, a file or other input, which the user can fix.

    The message is one line that says what is wrong and what to do. It names parameters in backticks, by their Python
    names; a command shows its own as flags: `` `label_dropout` `` becomes --label-dropout. Commands print the line
    without a traceback and exit with code 2.
    """


def reason_of(error: BaseException) -> str:
    """Return the message of another library's error as one short line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


# pattern in the message of an error of any type → what to do about it
OF_FOLDERS = {
    r"No usable temporary directory|MPLCONFIGDIR": "there is no folder for temporary files: set TMPDIR to one",
    r"determine home directory": "there is no home folder: set HOME to one",
}
NO_MEMORY = "not enough memory: use a smaller batch, or `accumulate`"
OF_PROCESSES = {
    r"can't start new thread": "no more threads can be started: end other programs, or raise the limits (ulimit)",
    r"^DataLoader (worker|timed out)|shared memory": "a process that reads data was killed, hangs, or has too "
    "little memory: use `num_workers` 0, or give it more memory",
    r"onnection (closed|reset|refused)|Broken pipe|Socket Timeout|TCPStore|timed out": "another process of this run "
    "has ended, or cannot be reached: see its message. Without torchrun, unset RANK, LOCAL_RANK and WORLD_SIZE",
    r"out of memory|can't allocate memory": NO_MEMORY,
}


def remedy_for(error: BaseException) -> str:
    """Return what to do about another library's error, with its message; empty if that is unknown."""
    if isinstance(error, MemoryError):
        return NO_MEMORY
    kinds = [OF_FOLDERS] if isinstance(error, OSError) else [OF_FOLDERS, OF_PROCESSES]
    found = next((words for kind in kinds for pattern, words in kind.items() if re.search(pattern, str(error))), "")
    return found and f"{found} ({reason_of(error)})"


def import_extra(module: str, use: str, extra: str = "") -> ModuleType:
    """Import a module that only some uses need.

    If it is missing, raises `InputError` saying what `use` needs and which extra of this package, if any, installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        name = f'"codegrid[{extra}]"' if extra else package
        raise InputError(f"{use} needs the {package} package: pip install {name}") from error
