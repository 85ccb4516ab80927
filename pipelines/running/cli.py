"""From a command line to the function that does the work, and from an error to an exit code.

Nothing here imports torch: flags are parsed before it is loaded.
"""

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import fields
from importlib import import_module
from typing import Any, NoReturn

from codegrid.console import steady_streams
from codegrid.errors import InputError, remedy_for
from codegrid.progress import keep_quiet, progress_bar, say
from codegrid.strict_json import to_json

from .cores import look
from .flags import parse
from .launch import join_launch
from .options import flag_of, list_options
from .settings import Command

DISK_ERRORS = {
    errno.ENOSPC: "the disk is full: make room and run the same command again",
    errno.EDQUOT: "the disk quota is used up: make room and run the same command again",
    errno.EROFS: "the disk is read-only: choose another folder",
    errno.EPERM: "not permitted: choose another folder, or change its permissions",
    errno.EACCES: "permission denied: choose another folder, or change its permissions",
    errno.ENOTDIR: "part of the path is a file: choose another folder",
    errno.EISDIR: "it is a folder where a file should be: choose another folder",
    errno.ENOENT: "no such file or folder: was it moved or removed?",
    errno.EIO: "the disk reports an error: choose a folder on another disk",
    errno.ESTALE: "the shared disk has lost the file: run the same command again",
    errno.EEXIST: "it is a file where a folder should be: choose another folder",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.ELOOP: "its links lead in a circle: choose another folder",
}


class Stopped(BaseException):
    """Raised when a run that was asked to stop has saved its state. Its argument is the signal's number."""


def run_command(settings_type: type[Command], body: str) -> None:
    """Parse the command line into settings and call the function `body`, named as `module:function`, with them.

    An error that the user can fix prints one line, with --verbose after its traceback, and exits with code 2. With
    --json, what the function returns is printed.
    """
    steady_streams()
    argv = sys.argv[1:]
    verbose = not {"-v", "--verbose"}.isdisjoint(argv)
    output = None
    try:
        join_launch()
        settings = parse(settings_type, argv)
        output, as_json = getattr(settings, "output", None), getattr(settings, "json", False)
        keep_quiet(settings.quiet)
        module, _, function = body.partition(":")
        look()  # so that the load of other programs is measured while torch is imported
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            result = getattr(import_module(module), function)(settings)
        if as_json and is_main_process():
            print(to_json(result))
        if code := settings.exit_code(result):
            sys.exit(code)
    except (InputError, OSError, RuntimeError, MemoryError) as error:
        words = str(error) if isinstance(error, InputError) else remedy_for(error)
        if not words and isinstance(error, OSError) and error.errno in DISK_ERRORS:
            where = error.filename or output
            words = f"{where}: {DISK_ERRORS[error.errno]}" if where else DISK_ERRORS[error.errno]
        if not words:  # an OSError that is not about a disk, such as too many open files
            raise
        _fail(with_flags(words, settings_type), verbose)
    except KeyboardInterrupt:
        _end_stopped(signal.SIGINT, "stopped; run the same command again")
    except Stopped as stop:
        _end_stopped(stop.args[0], "stopped and saved; run the same command again to continue")
    finally:
        keep_quiet(False)


def count_processes() -> int:
    """Return how many processes torchrun started, on all machines; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this is the first of the processes that were started together, or the only one."""
    # RANK without WORLD_SIZE is left over from something else
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def print_once(line: str) -> None:
    """Print a line once, not once per process, and above the progress bars; with --quiet print nothing."""
    if is_main_process():
        say(line)


def resume_bar(folder: object, missing: Sequence[range], total: int, desc: str) -> Any:
    """Return a progress bar over the missing images of `total`, and say how many an earlier run left, if any."""
    done = total - sum(map(len, missing))
    if done:
        print_once(f"{folder}: continuing, {done:,} of {total:,} are there")
    return progress_bar(total=total, initial=done, desc=desc, unit="img", disable=not is_main_process())


def print_plan(*lines: str) -> None:
    """Print what a dry run found, and that it wrote nothing."""
    print_once("\n".join([*lines, "dry run: nothing was written"]))


def with_flags(message: str, settings_type: type) -> str:
    """Return a message in which settings and options in backticks are flags: `label_dropout` → --label-dropout."""
    names = {item.name for item in fields(settings_type)}
    with suppress(InputError):  # perhaps the very error that is being reported
        names |= set(list_options(settings_type))

    def as_flag(match: re.Match) -> str:
        return flag_of(match[1]) if match[1] in names else match[0]

    return re.sub(r"`(\w+)`", as_flag, message)


def _fail(message: str, verbose: bool) -> NoReturn:
    if verbose:
        traceback.print_exc()
    in_one_line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(message.split()))
    print("error: " + in_one_line, file=sys.stderr)
    sys.exit(2)


def _end_stopped(number: int, words: str) -> None:
    if is_main_process():
        print(f"\n{words}", file=sys.stderr)
    sys.exit(128 + number)  # the exit code that a shell gives for a signal
