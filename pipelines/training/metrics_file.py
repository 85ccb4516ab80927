"""OUTPUT/metrics.jsonl: what is measured while training, a line of JSON for each step that is reported."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from typing_extensions import Self

from codegrid.files import write_folder

from .objective import Metrics

NAME = "metrics.jsonl"


class MetricsFile:
    """The file of one run, from `with` to its end.

    Args:
        folder: of the run.
        start: steps that are done already: lines of later ones are of work that was lost, and are left out.
        is_main: whether this process writes it.
    """

    def __init__(self, folder: Path, start: int, is_main: bool) -> None:
        self.path, self.start, self.is_main = folder / NAME, start, is_main
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        if self.is_main:
            with write_folder(self.path.parent) as staging, (staging / NAME).open("w", encoding="utf-8") as file:
                file.writelines(self._kept())
            self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        if self._file:
            self._file.close()

    def write(self, row: Metrics) -> None:
        """Add a line: the metrics of a step, `step` among them. All are finite numbers."""
        if self._file:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()

    def _kept(self) -> Iterator[str]:
        """Yield the lines of an earlier process that still hold."""
        if self.start and self.path.is_file() and not self.path.is_symlink():
            with self.path.open(encoding="utf-8", errors="replace") as file:
                yield from (line for line in file if line.endswith("\n") and _step_of(line) <= self.start)


def _step_of(line: str) -> float:
    """Return the step of a line; infinity where it tells none."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return float("inf")
    return step if isinstance(step, int) else float("inf")
