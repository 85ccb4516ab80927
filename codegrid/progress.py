"""Progress of a run: bars on a terminal, a line now and then in a log file, nothing if it was asked to be quiet."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager
from typing import Any

SECONDS, SHARE = 60.0, 0.1  # minimum time between two lines of a log: seconds, and a share of the time so far

_quiet = False


def keep_quiet(quiet: bool) -> None:
    """Turn bars and messages off, or on again."""
    global _quiet
    _quiet = quiet


def say(line: str) -> None:
    """Print a line, above the bars if there are any."""
    if _quiet:
        return
    if "tqdm" in sys.modules and _on_terminal():
        sys.modules["tqdm"].tqdm.write(line)
    else:
        print(line, flush=True)


def progress_bar(
    iterable: Iterable[Any] | None = None,
    desc: str = "",
    total: int | None = None,
    initial: int = 0,
    disable: bool = False,
    **options: Any,
) -> Any:
    """Return a tqdm bar, or `Lines` if standard error is not a terminal.

    Args:
        iterable: the items to yield and count. Without it, call `update` to count.
        desc, total, initial: as for tqdm.
        disable: show nothing, as in all processes but the first.
        options: other options of tqdm, such as `unit` and `leave`.
    """
    if not _on_terminal():
        return Lines(iterable, desc, total, initial, disable or _quiet)
    from tqdm import tqdm  # here: --help does not need it

    options |= {"initial": initial, "disable": disable or _quiet, "dynamic_ncols": True}
    return tqdm(iterable, desc, total, **options)


class Lines(AbstractContextManager[Any]):
    """A bar for log files: lines on standard error, rarer the longer the work takes. Short work prints none."""

    def __init__(
        self, iterable: Iterable[Any] | None, desc: str, total: int | None, initial: int, disable: bool
    ) -> None:
        self.iterable: Iterable[Any] = () if iterable is None else iterable
        self.total = len(iterable) if total is None and isinstance(iterable, Sized) else total
        self.desc, self.initial, self.disable = desc, initial, disable
        self.n: float = initial
        self.since = self.last = time.monotonic()
        self.update(0)

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            yield item
            self.update()

    def update(self, n: float = 1) -> None:
        """Count `n` more items, and print a line if it is time for one."""
        self.n += n
        now = time.monotonic()
        if not self.disable and now - self.last >= max(SECONDS, SHARE * (now - self.since)):
            self.last = now
            print(self, file=sys.stderr, flush=True)

    def __str__(self) -> str:
        of_all = "" if self.total is None else f" of {self.total:,}"
        return f"{self.desc}: {self.n:,.0f}{of_all}, {time_left(self.n, self.total, self.initial, self.since)}"

    def set_postfix(self, *arguments: object, **options: object) -> None:
        """Ignore values that change with every step."""

    def __exit__(self, *error: object) -> None:
        pass


def time_left(done: float, total: int | None, initial: int, since: float) -> str:
    """Say how long the work has taken so far, and how long the rest will take: `0:02:10, 1:05:00 left`.

    Args:
        done, total: number of items that are done, and of all.
        initial: number of items that were done before `since`.
        since: when the work began, by `time.monotonic`.
    """
    seconds = time.monotonic() - since
    if total is None or done <= initial:
        return clock(seconds)
    return f"{clock(seconds)}, {clock(seconds / (done - initial) * (total - done))} left"


def clock(seconds: float) -> str:
    """Return a time as hours, minutes and seconds, `0:02:10`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _on_terminal() -> bool:
    """Return whether a bar can be drawn: on a terminal, or in a notebook."""
    return sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
