"""How fast a training loop goes, and which share of its time it waits for data."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Batch = TypeVar("Batch")


class Speed:
    """Watches the batches that a loop takes; `read` gives the figures since it was last called.

    Args:
        batch_size: items a step.
        items: what they are called, `images` for example.
    """

    def __init__(self, batch_size: int, items: str) -> None:
        self.batch_size = batch_size
        self.items = items
        self._restart()

    def _restart(self) -> None:
        self.steps, self.waited, self.paused = 0, 0.0, 0.0
        self.since = time.perf_counter()

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; the time until each is there counts as waiting."""
        asked = time.perf_counter()
        for batch in batches:
            self.waited += time.perf_counter() - asked
            self.steps += 1
            yield batch
            asked = time.perf_counter()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out what is not training: validation, saving."""
        start = time.perf_counter()
        yield
        self.paused += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Items per second and the share of the time spent waiting, 0 ... 1."""
        seconds = max(time.perf_counter() - self.since - self.paused, 1e-9)
        figures = {f"{self.items}/s": self.steps * self.batch_size / seconds, "waiting": self.waited / seconds}
        self._restart()
        return figures
