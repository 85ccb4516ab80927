"""Timing several steps in turn, each in its own process: anything that slows the machine down slows all of them.

Its own process gives each step its own memory allocator and its own memory peak.
"""

import os
import resource
import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

WARM_UP = 3  # steps


class Timing(NamedTuple):
    """Measurements of one contender."""

    seconds: float  # median of a step
    megabytes: float  # the process's peak, beyond what it held before the contender was built


class Contender:
    """A step in its own process.

    Args:
        build: makes the step; called in the process.
        arguments: for `build`.
        keeps_memory: keep the memory of large tensors instead of giving it back, as Codegrid's commands do.
    """

    def __init__(self, build: Callable[..., Callable[[], object]], *arguments: Any, keeps_memory: bool = True) -> None:
        context = get_context("spawn")
        self.connection, other_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(other_end, build, arguments, keeps_memory), daemon=True)
        self.process.start()

    def run(self, steps: int) -> list[float]:
        """Run steps, and return the seconds of each."""
        self.connection.send(steps)
        return self.connection.recv()

    def stop(self) -> float:
        """End the process, and return its peak memory in MB."""
        self.connection.send(0)
        megabytes = self.connection.recv()
        self.process.join()
        return megabytes


class Here:
    """A step in this process, for a trial in seconds. Its memory is not measured."""

    def __init__(self, build: Callable[..., Callable[[], object]], *arguments: Any, keeps_memory: bool = True) -> None:
        self.step = build(*arguments)

    def run(self, steps: int) -> list[float]:
        """Run steps, and return the seconds of each."""
        return _time(self.step, steps)

    def stop(self) -> float:
        """Return 0, since memory is not measured."""
        return 0.0


def measure(contenders: Mapping[str, Contender | Here], rounds: int, steps: int = 3) -> dict[str, Timing]:
    """Run all contenders in turn, `steps` steps each, for `rounds` rounds."""
    for contender in contenders.values():
        contender.run(WARM_UP)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            seconds[name] += contender.run(steps)
    return {name: Timing(median(seconds[name]), contenders[name].stop()) for name in contenders}


def _serve(connection: Connection, build: Callable, arguments: tuple, keeps_memory: bool) -> None:
    import torch

    from codegrid.pipelines.running.device import keep_memory

    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # all, even if others are busy now
    if keeps_memory:
        keep_memory()
    torch.manual_seed(0)
    before = _peak()
    step = build(*arguments)
    while steps := connection.recv():
        connection.send(_time(step, steps))
    connection.send(_peak() - before)


def _time(step: Callable[[], object], steps: int) -> list[float]:
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def _peak() -> float:
    """Return the peak memory of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, where `ru_maxrss` of a new process starts at what its parent held
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
