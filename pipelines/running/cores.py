"""How many threads compute on a CPU: as many as there are cores that nobody else keeps busy when a run begins.

A step ends with the slowest of its threads. One that shares its core with another program gets half of it, and the
others wait: a thread less is faster. Nothing here imports torch.
"""

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
LEAST, MOST = 0.2, 30.0  # seconds for which others are watched
ROUGH = 0.1  # of a core: less is not counted, however many cores there are


class Look(NamedTuple):
    """Seconds of computing up to a moment."""

    moment: float
    everyone: float  # on the cores that this process may use
    own: float  # of this process, and of those that it started and that have ended


class Cores(NamedTuple):
    """The cores of a machine, as far as they are there for this process."""

    allowed: int
    quota: float = math.inf  # how many at once, by the limits of its control groups
    busy: float = 0.0  # kept so by others


_looks: list[Look] = []  # the last one


def look() -> Look | None:
    """Note how much was computed up to now, and return it; None where the system does not tell.

    What others do from here on is what `find_cores` counts.
    """
    try:
        lines = (PROC / "stat").read_text(encoding="ascii").splitlines()
        allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        yields = os.getpriority(os.PRIO_PROCESS, 0) <= 0  # what runs at a lower priority than this gives way
        ticks = 0
        for name, *counts in map(str.split, lines):
            if name in allowed:
                user, nice, system, _, _, irq, softirq, stolen = map(int, counts[:8])
                ticks += user + system + irq + softirq + stolen + (0 if yields else nice)
        seen = Look(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4]))
    except (AttributeError, OSError, ValueError):  # not Linux, or not as Linux does it
        return None
    _looks[:] = [seen]
    return seen


def find_cores(watch: bool = True) -> Cores:
    """Return the cores that there are for this process now.

    Args:
        watch: what others do, since the last look. Where that is long ago, or just now, this waits for `LEAST` seconds.
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
    """Return how many of at most `most` threads are to compute, and where these are fewer, why.

    Args:
        processes: on this machine, which share its cores. They cannot be told from others, which are watched for a
            process alone.
    """
    if most == 1:
        return 1, ""
    cores = find_cores(watch=processes == 1)
    limits = [(most, "")]  # the first of equal ones counts
    if processes > 1:
        limits.append((cores.allowed // processes, f"{processes} processes share {cores.allowed} cores"))
    else:  # a thread less costs more than others that take less than its share from all
        free = cores.allowed - cores.busy + max(1 / cores.allowed, ROUGH)
        limits.append((int(free), f"others keep {cores.busy:.1f} of {cores.allowed} cores busy"))
    if cores.quota < cores.allowed:
        limits.append((int(cores.quota / processes + 0.5), f"a limit of {cores.quota:g} of {cores.allowed} cores"))
    count, why = min(limits, key=lambda limit: limit[0])
    return max(1, count), why


def _quotas() -> Iterator[float]:
    """Yield how many cores each control group of this process may use at once, where that is limited."""
    try:
        lines = (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for _, kinds, place in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if kinds and "cpu" not in kinds.split(","):
            continue
        # version 1 has a tree for each kind; inside of a container the path may be that of the host
        root = CGROUPS / "cpu" if kinds else CGROUPS
        for folder in (root / place.lstrip("/"), *(root / place.lstrip("/")).parents):
            if folder.is_relative_to(root):
                yield from _quota_of(folder)


def _quota_of(folder: Path) -> Iterator[float]:
    """Yield the limit of one control group, if it has one."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # of version 2, of version 1
        try:
            quota, period = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
            if int(quota) > 0 and int(period) > 0:  # `max` and -1 are no limit
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue
