"""Signals while training: the current step is finished and saved before the run ends.

Ctrl-C and SIGTERM stop the run, so that it can continue later; SIGUSR1 finishes it early.
"""

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from typing_extensions import Self

FINISH = int(getattr(signal, "SIGUSR1", 10))  # Windows does not have it
NOTED = {signal.SIGINT, signal.SIGTERM, FINISH} & set(signal.valid_signals())
Item = TypeVar("Item")


class _Interrupted(BaseException):
    """Raised when a signal ends a wait."""


class StopSignals:
    """A context that notes SIGUSR1 and the first SIGINT or SIGTERM; a second one acts at once.

    With `finish` it begins as if SIGUSR1 had been received.
    """

    def __init__(self, finish: bool = False) -> None:
        self.received: int | None = FINISH if finish else None
        self.interrupted: int | None = None  # the signal that has ended a wait
        self._waits = False
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # other threads cannot set handlers
            self._earlier = {number: signal.signal(number, self._note) for number in NOTED}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if number == FINISH:
            return
        self._restore()
        if self._waits:
            raise _Interrupted

    def until_stopped(self, items: Iterable[Item], accelerator: Accelerator) -> Iterator[Item]:
        """Yield the items. A signal during a wait for the next item, which may be long, ends the iteration.

        Several processes keep waiting: none of them may leave alone.
        """
        iterator, alone = iter(items), accelerator.num_processes == 1
        while True:
            try:
                self._waits = alone
                item = next(iterator)
            except StopIteration:
                return
            except _Interrupted:
                self.interrupted = self.received
                return
            finally:
                self._waits = False
            yield item

    def _restore(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def agreed(self, accelerator: Accelerator) -> int | None:
        """Return the signal that any of the processes received, or None. All must call this after the same step."""
        if accelerator.num_processes == 1:
            return self.received
        mine = torch.tensor([self.received or 0], device=accelerator.device)
        return int(accelerator.gather(mine).max()) or None
