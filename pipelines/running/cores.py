"""The number of threads to compute with on a CPU: one for each core that no other program keeps busy at the start.

A step ends with its slowest thread. A thread that shares its core with another program gets half of it, and the other
threads wait for it: one thread fewer is faster. Nothing here imports torch.
"""

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
LEAST, MOST = 0.2, 30.0  # seconds for which other programs are watched
ROUGH = 0.1  # of a core: a smaller load is ignored, however many cores there are


class Look(NamedTuple):
    """CPU seconds that were used up to a moment."""

    moment: float
    everyone: float  # on the cores that this process may use
    own: float  # by this process, and by its child processes that have ended


class Cores(NamedTuple):
    """The cores that this process may use."""

    allowed: int
    quota: float = math.inf  # how many at once, by the limits of its control groups
    busy: float = 0.0  # with other programs


_looks: list[Look] = []  # the last one


def look() -> Look | None:
    """Note how much CPU time was used up to now, and return it; None if the system does not say.

    `find_cores` counts what other programs use from here on.
    """
    try:
        lines = (PROC / "stat").read_text(encoding="ascii").splitlines()
        allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        yields = os.getpriority(os.PRIO_PROCESS, 0) <= 0  # then programs of lower priority give way to this one
        ticks = 0
        for name, *counts in map(str.split, lines):
            if name in allowed:
                user, nice, system, _, _, irq, softirq, stolen = map(int, counts[:8])
                ticks += user + system + irq + softirq + stolen + (0 if yields else nice)
        seen = Look(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4]))
    except (AttributeError, OSError, ValueError):  # not Linux, or an unusual one
        return None
    _looks[:] = [seen]
    return seen


def find_cores(watch: bool = True) -> Cores:
    """Return the cores that this process can use now.

    Args:
        watch: count the cores that others have used since the last `look`. If that was long ago, or only just now,
            this waits for `LEAST` seconds.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = min(_quotas(), default=math.inf)
    earlier, now = _looks[-1] if _looks else None, look() if watch else None
    if now is None:
        return Cores(allowed, quota)
    if earlier is None or not LEAST <= now.moment - earlier.moment <= MOST:
        time.sleep(LEAST)
        earlier, now = now, look() or now
    computed = now.everyone - earlier.everyone - (now.own - earlier.own)
    return Cores(allowed, quota, max(0.0, computed / max(now.moment - earlier.moment, 1e-9)))


def choose_threads(most: int, processes: int = 1) -> tuple[int, str]:
    """Return how many threads to compute with, at most `most`, and the reason if they are fewer.

    Args:
        processes: number of processes of this run that share the machine's cores. Other programs are watched only if
            it is 1: several processes could not be told apart from them.
    """
    if most == 1:
        return 1, ""
    cores = find_cores(watch=processes == 1)
    limits = [(most, "")]  # of equal limits the first counts
    if processes > 1:
        limits.append((cores.allowed // processes, f"{processes} processes share {cores.allowed} cores"))
    else:  # one thread fewer costs more than a load that is smaller than one thread's share
        free = cores.allowed - cores.busy + max(1 / cores.allowed, ROUGH)
        limits.append((int(free), f"other programs keep {cores.busy:.1f} of {cores.allowed} cores busy"))
    if cores.quota < cores.allowed:
        limits.append((int(cores.quota / processes + 0.5), f"a limit of {cores.quota:g} of {cores.allowed} cores"))
    count, why = min(limits, key=lambda limit: limit[0])
    return max(1, count), why


def _quotas() -> Iterator[float]:
    """Yield how many cores each control group of this process may use at once, if that is limited."""
    try:
        lines = (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for _, kinds, place in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if kinds and "cpu" not in kinds.split(","):
            continue
        # version 1 has a tree for each kind; inside a container the path may be that of the host
        root = CGROUPS / "cpu" if kinds else CGROUPS
        for folder in (root / place.lstrip("/"), *(root / place.lstrip("/")).parents):
            if folder.is_relative_to(root):
                yield from _quota_of(folder)


def _quota_of(folder: Path) -> Iterator[float]:
    """Yield the limit of one control group, if it has one."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # version 2, version 1
        try:
            quota, period = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
            if int(quota) > 0 and int(period) > 0:  # `max` and -1 mean no limit
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue
