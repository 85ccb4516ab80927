"""From a command line to a script's function, and from an error to an exit code."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import TypeVar

import tyro

from codegrid.errors import InputError
from codegrid.locks import release_all

from .checks import check_ranges

Settings = TypeVar("Settings")


class Stopped(BaseException):
    """A run that was asked to end has saved its state, and ends. Its argument is the signal's number."""


DISK_ERRORS = {
    errno.ENOSPC: "no room is left on the disk: make some and run the same command again",
    errno.EDQUOT: "the disk quota is used up: make room and run the same command again",
    errno.EROFS: "the disk can only be read: choose another --output",
    errno.EPERM: "not permitted: choose another folder, or change its permissions",
    errno.EACCES: "permission denied: choose another folder, or change its permissions",
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
    errno.ENOENT: "no such file or folder: was it moved or removed?",
    errno.EIO: "the disk reports an error: choose a folder on another one",
    errno.EEXIST: "a file is in the place of a folder: choose another folder",
}


def run_script(settings_type: type[Settings], script: Callable[[Settings], None]) -> None:
    """Parse the command line into `settings_type` and call `script` with it. Flags are parsed before torch is imported.

    What the user can mend ends in one line and exit code 2, and with `--verbose` in a traceback before it.
    """
    settings = tyro.cli(settings_type, prog=f"python -m pipelines.{script.__name__}")
    try:
        check_ranges(asdict(settings))
        script(settings)
    except InputError as error:
        _fail(str(error), settings.verbose)
    except OSError as error:
        if error.errno is None:  # not the operating system's
            raise
        reason = DISK_ERRORS.get(error.errno, f"{error.strerror}: choose another folder")
        where = error.filename or getattr(settings, "output", None)
        _fail(f"{where}: {reason}" if where else reason, settings.verbose)
    except KeyboardInterrupt:
        _end_stopped(signal.SIGINT, "stopped; run the same command again")
    except Stopped as stop:
        _end_stopped(stop.args[0], "stopped and saved; the same command goes on")
    finally:
        release_all()


def is_main_process() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Print a line, once for all processes."""
    if is_main_process():
        print(line, flush=True)


def _fail(message: str, verbose: bool) -> None:
    if verbose:
        traceback.print_exc()
    in_one_line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(message.split()))
    print("error: " + in_one_line, file=sys.stderr)
    sys.exit(2)


def _end_stopped(number: int, words: str) -> None:
    if is_main_process():
        print(f"\n{words}", file=sys.stderr)
    sys.exit(128 + number)  # what a shell makes of a signal
