"""A disk that fills, a folder that becomes read-only, and one that disappears, in the middle of a command."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .children import REFUSED, Child, content_of, run, verdict


@contextmanager
def small_disk(place: Path, megabytes: float) -> Iterator[Path]:
    """Mount a disk in memory of this size. Needs the right to mount."""
    place.mkdir()
    size = f"size={int(megabytes * 1024)}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)], check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        place.rmdir()


def fill_up(command: str, flags: list[str], place: Path, expected: dict[str, str]) -> str:
    """Let a disk fill while a command writes, make room, and run it again. Returns what happened."""
    with small_disk(place / "disk", 64) as disk:
        output, filler = disk / "output", disk / "filler"
        child = Child(command, [*flags, "--output", str(output)], place / "log")
        _wait_for_progress(child, output)
        child.stop()
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        child.go_on()
        met = verdict(child.wait(), child.output(), False, "the disk is full")
        filler.unlink()
        return met if met != REFUSED else _again(command, flags, output, place, expected)


def make_read_only(command: str, flags: list[str], place: Path, expected: dict[str, str]) -> str:
    """Remove the right to write while a command runs, restore it, and run it again. Returns what happened."""
    output = place / "read only"
    child = Child(command, [*flags, "--output", str(output)], place / "log")
    _wait_for_progress(child, output)
    child.stop()
    folders = [output, *(path for path in output.rglob("*") if path.is_dir())]
    change = _immutable if os.geteuid() == 0 else _without_rights
    for folder in folders:
        change(folder, True)
    child.go_on()
    met = verdict(child.wait(), child.output(), False, "permitted")
    for folder in folders:
        change(folder, False)
    return met if met != REFUSED else _again(command, flags, output, place, expected)


def take_away(command: str, flags: list[str], place: Path, expected: dict[str, str]) -> str:
    """Move the folder away while a command runs, and run it again. Returns what happened."""
    output = place / "taken"
    child = Child(command, [*flags, "--output", str(output)], place / "log")
    _wait_for_progress(child, output)
    child.stop()
    output.rename(place / "elsewhere")
    child.go_on()
    met = verdict(child.wait(), child.output(), False, "removed")
    if met != REFUSED:
        return met
    if output.exists():
        return "the folder was made again"
    (place / "elsewhere").rename(output)
    return _again(command, flags, output, place, expected)


CASES: dict[str, Callable[..., str]] = {
    "the disk fills": fill_up,
    "the folder becomes read-only": make_read_only,
    "the folder disappears": take_away,
}


def _wait_for_progress(child: Child, output: Path) -> None:
    """Wait until the command has done and written something."""
    while not child.ended() and not (child.progress()[1] and any(output.rglob("*.*"))):
        time.sleep(0.002)


def _again(command: str, flags: list[str], output: Path, place: Path, expected: dict[str, str]) -> str:
    code, printed = run(command, [*flags, "--output", str(output)], place / "log")
    if code:
        return f"again: exit code {code}: {printed.strip().splitlines()[-1]}"
    return "one line, and the same result afterwards" if content_of(output) == expected else "another result"


def _immutable(folder: Path, is_so: bool) -> None:
    subprocess.run(["chattr", "+i" if is_so else "-i", str(folder)], check=True)


def _without_rights(folder: Path, is_so: bool) -> None:
    folder.chmod(0o500 if is_so else 0o700)
