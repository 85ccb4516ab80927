"""Files damaged at many places, one after the other, and the answers of the commands that read them."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .children import REFUSED, WHOLE, content_of, run, verdict


class Case(NamedTuple):
    """A way to damage a file: its name, and the new content of the file; None removes the file."""

    name: str
    content: bytes | None


class Reader(NamedTuple):
    """The command that reads a file in a folder of artifacts."""

    file: str
    command: str
    flags: str  # with {folder}
    skips: bool = False  # whether it continues from an earlier state, instead of refusing


def ways(content: bytes, others: dict[str, bytes], flips: int) -> Iterator[Case]:
    """Yield flipped bits and cuts at even distances, no file, other content, and the content of other files."""
    for i in range(flips):
        at = i * (len(content) - 1) // max(1, flips - 1)
        flipped = bytearray(content)
        flipped[at] ^= 1 << i % 8
        yield Case(f"bit {i % 8} of byte {at} flipped", bytes(flipped))
    for i in range(max(2, flips // 3)):
        yield Case(f"cut after {i}/{max(2, flips // 3)}", content[: i * len(content) // max(2, flips // 3)])
    yield Case("removed", None)
    yield Case("longer by a byte", content + b"\0")
    yield Case("a list in JSON", b"[]")
    yield Case("noise", np.random.default_rng(0).bytes(max(64, len(content))))
    for name, other in others.items():
        yield Case(f"content of {name}", other)


def damage(reader: Reader, others: list[str], artifacts: Path, place: Path, flips: int) -> tuple[int, list[str]]:
    """Return the number of cases, and a line for each that was handled wrongly.

    Args:
        others: files whose content replaces that of the reader's file.
        place: a folder for temporary files.
        flips: number of bits to flip.
    """
    contents = {name: (artifacts / name).read_bytes() for name in others if name != reader.file}
    expected = _read(reader, artifacts, place)[2]
    cases = list(ways((artifacts / reader.file).read_bytes(), contents, flips))
    reasons = ((case.name, _meet(reader, case, artifacts, place, expected)) for case in cases)
    return len(cases), [f"{name}: {reason}" for name, reason in reasons if reason]


def _meet(reader: Reader, case: Case, artifacts: Path, place: Path, expected: dict[str, str]) -> str | None:
    """Return what is wrong with a command's reaction to a damaged file; None if nothing is."""
    folder = place / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(artifacts, folder)
    if case.content is None:
        (folder / reader.file).unlink()
    else:
        (folder / reader.file).write_bytes(case.content)
    code, output, result = _read(reader, folder, place)
    met = verdict(code, output, result == expected)
    if met not in (WHOLE, REFUSED):
        return met
    if reader.skips and case.content is not None and (code or "skipping a damaged training state" not in output):
        return f"exit code {code}, and the state before it was not used"
    if not reader.skips and code == 0:
        return "accepted as if it were undamaged"
    return None


def _read(reader: Reader, folder: Path, place: Path) -> tuple[int, str, dict[str, str]]:
    output = place / "output"
    shutil.rmtree(output, ignore_errors=True)
    if reader.skips:  # the run continues in its own folder
        output = folder / Path(reader.file).parts[0]
        if folder.name != "damaged":
            shutil.copytree(output, place / "output")
            output = place / "output"
    flags = [flag.format(folder=folder) for flag in reader.flags.split()]
    code, printed = run(reader.command, [*flags, "--output", str(output)], place / "log")
    return code, printed, content_of(output) if output.is_dir() else {}
