"""Signals while training: the step is finished and saved before the run ends.

Ctrl-C and SIGTERM stop it, so that it can go on later; SIGUSR1 says that it is enough.
"""

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from typing_extensions import Self

FINISH = int(getattr(signal, "SIGUSR1", 10))  # which Windows cannot send
NOTED = {signal.SIGINT, signal.SIGTERM, FINISH} & set(signal.valid_signals())
Item = TypeVar("Item")


class _Interrupted(BaseException):
    """A wait that a signal has ended."""


class StopSignals:
    """Notes SIGUSR1, and the first SIGINT or SIGTERM, within its context; a second one acts at once.

    `finish` begins as if SIGUSR1 had come.
    """

    def __init__(self, finish: bool = False) -> None:
        self.received: int | None = FINISH if finish else None
        self.interrupted: int | None = None  # the signal that has ended a wait
        self._waits = False
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others cannot
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
        """Hand items on. A signal that comes while one is waited for ends the wait, which may be long, and the row.

        Of several processes none may leave alone: they go on waiting.
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
        """Return the signal that one of the processes got, or None. All of them must ask after the same step."""
        if accelerator.num_processes == 1:
            return self.received
        mine = torch.tensor([self.received or 0], device=accelerator.device)
        return int(accelerator.gather(mine).max()) or None
