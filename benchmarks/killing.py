"""SIGKILL at random moments, and the same command again until it ends: is anything lost?"""

import random
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .children import Child, content_of, run


class Kills(NamedTuple):
    """Counts of runs that were killed."""

    kills: int
    after_first_step: int
    inside_a_save: int
    runs: int  # killed again and again until they ended
    lost: int  # states that were complete before a kill, and not continued from after it
    different: int  # runs whose result is not bitwise that of a run without kills


def kill_and_continue(command: str, flags: list[str], place: Path, kills: int, seed: int = 0) -> Kills:
    """Kill a command `kills` times; `flags` lack --output."""
    draw, counts = random.Random(seed), dict.fromkeys(Kills._fields, 0)
    whole = place / "whole"
    start = time.monotonic()
    code, output = run(command, [*flags, "--output", str(whole)], place / "log")
    assert code == 0, output
    seconds, expected = time.monotonic() - start, content_of(whole)
    while counts["kills"] < kills:
        killed = place / f"killed {counts['runs']}"
        counts["runs"] += 1
        newest = 0
        while True:
            child = Child(command, [*flags, "--output", str(killed)], place / "log")
            may_kill = counts["kills"] < kills
            if may_kill:
                wait_for_a_moment(child, killed, draw, seconds)
            if not may_kill or child.ended():
                code = child.wait()
                assert code == 0, child.output()
                break
            child.stop()
            began, now = child.progress()
            counts["lost"] += bool(now) and began < newest
            counts["kills"] += 1
            counts["after_first_step"] += now > began
            counts["inside_a_save"] += _is_saving(child, killed)
            child.kill()
            newest = max((int(path.parent.name[5:]) for path in killed.glob("state/step-*/state.json")), default=0)

        counts["different"] += content_of(killed) != expected
        counts["lost"] += "skipping" in child.output()
        shutil.rmtree(killed)
    return Kills(**counts)


def wait_for_a_moment(child: Child, folder: Path, draw: random.Random, seconds: float) -> None:
    """Wait for a random moment: one in five while it starts, two in five while a file is being written, else any."""
    aim = draw.random()
    if aim < 0.2:
        return time.sleep(draw.random() * 0.3)
    until, progress = time.monotonic() + seconds, False
    while not child.ended() and time.monotonic() < until and not progress:
        began, now = child.progress()
        progress = now > began
        time.sleep(0.001)
    time.sleep(draw.random() * seconds / 4)
    while aim < 0.6 and not child.ended() and not _is_saving(child, folder):
        pass
    return None


def _is_saving(child: Child, folder: Path) -> bool:
    """Return whether this process, and not one killed before, has a half-written file."""
    with suppress(OSError):  # files can disappear at any moment
        return any(staging.stat().st_ctime > child.born for staging in folder.rglob(".partial"))
    return False
