"""From a command line to a script's function, and from an error to an exit code."""

import errno
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TypeVar

import tyro

from storage.errors import InputError

from .checks import check_ranges

Settings = TypeVar("Settings")

DISK_ERRORS = {
    errno.ENOSPC: "no room is left on the disk: make some and run the same command again",
    errno.EDQUOT: "the disk quota is used up: make room and run the same command again",
    errno.EROFS: "the disk can only be read: choose another --output",
    errno.EACCES: "permission denied: choose another folder, or change its permissions",
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
    errno.EEXIST: "a file is in the place of a folder: choose another folder",
}


def run_script(settings_type: type[Settings], script: Callable[[Settings], None]) -> None:
    """Parse the command line into `settings_type` and call `script` with it. Flags are parsed before torch is imported.

    What the user can mend ends in one line and exit code 2.
    """
    settings = tyro.cli(settings_type, prog=f"python -m pipelines.{script.__name__}")
    try:
        check_ranges(asdict(settings))
        script(settings)
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno is None:  # not the operating system's
            raise
        reason = DISK_ERRORS.get(error.errno, f"{error.strerror}: choose another folder")
        _fail(f"{error.filename or settings.output}: {reason}")
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
        sys.exit(130)


def say(line: str) -> None:
    """Print a line, once for all processes."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def _fail(message: str) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
