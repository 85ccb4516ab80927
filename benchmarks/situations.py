"""Disturbed runs: by signals, readers, links, other runs, and files that change while they are read.

Each function provokes one fault, chosen at random, and returns what came of it: `WHOLE`, `REFUSED`, or what is wrong.
"""

import errno
import fcntl
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import codegrid.data.codes
from codegrid import load, sample
from codegrid.codes import Signal
from codegrid.usable import find_usable

from .children import REFUSED, WHOLE, Child, Work, content_of, run, verdict
from .killing import wait_for_a_moment

TRAINING = ("train_tokenizer", "train_prior")


@dataclass
class Scene:
    """Everything needed to provoke one fault.

    Args:
        artifacts: data.npz, tokenizer/, codes/ and prior/, which must not be changed.
        lines: command lines without --output, by names whose first word is the command.
        place: an empty folder.
        draw: random generator for all choices.
        wholes: what each line leaves when nothing goes wrong, and the seconds that it takes; filled on demand.
    """

    artifacts: Path
    lines: dict[str, list[str]]
    place: Path
    draw: random.Random
    wholes: dict[str, tuple[dict[str, str], float]] = field(default_factory=dict)

    def choose(self, *names: str) -> str:
        """Return the name of a command line, one of these or of all; run it once if it has never run."""
        name = self.draw.choice(names or tuple(self.lines))
        if name not in self.wholes:
            began = time.monotonic()
            code, printed = self.run(name, self.place / "whole")
            assert code == 0, printed
            self.wholes[name] = content_of(self.place / "whole"), time.monotonic() - began
            shutil.rmtree(self.place / "whole")
        return name

    def start(self, name: str, output: Path, prepare: Work = lambda: None, *more: str) -> Child:
        """Start a command line."""
        return Child(name.split()[0], [*self.lines[name], *more, "--output", str(output)], self.place / "log", prepare)

    def start_and_wait(self, name: str, output: Path, prepare: Work = lambda: None) -> Child:
        """Start a command line and halt it at a random moment, unless it has ended before."""
        child = self.start(name, output, prepare)
        wait_for_a_moment(child, output, self.draw, self.wholes[name][1])
        if not child.ended():
            child.stop()
        return child

    def run(self, name: str, output: Path, prepare: Work = lambda: None, *more: str) -> tuple[int, str]:
        """Run a command line to its end."""
        child = self.start(name, output, prepare, *more)
        return child.wait(), child.output()

    def judge(self, name: str, output: Path, code: int, printed: str, words: str = "") -> str:
        """Return how a run of a command line ended."""
        expected = self.wholes[name][0]
        found = content_of(output) if code == 0 else {}
        return verdict(code, printed, {file: found.get(file) for file in expected} == expected, words)

    def go_on(self, name: str, output: Path) -> str:
        """Run the same command again, and return how it ended."""
        return self.judge(name, output, *self.run(name, output))


def use_model(folder: Path) -> None:
    """Load a model, reconstruct or sample with it, and check that the results are finite."""
    model = load(folder)
    if model.kind == "tokenizer":
        what = model.reconstruct(torch.zeros(1, *Signal(**model.config["signal"]).shape))
    else:
        (what,) = sample(model, 2, seed=0)
    assert torch.isfinite(what.float()).all()


def models_so_far(scene: Scene) -> str:
    """Load the model that a training run has left so far, while it runs or after a kill, and let it finish."""
    name, output = scene.choose(*TRAINING), scene.place / "run"
    child, is_early = scene.start(name, output), scene.draw.random() < 0.2
    while not (is_early or (output / "last" / "config.json").exists() or child.ended()):
        time.sleep(0.002)
    time.sleep(scene.draw.random() * scene.wholes[name][1] / 2)
    if scene.draw.random() < 0.5:
        child.kill()
    had_one = find_usable(output) != output or (output / "model.safetensors").exists()
    met = verdict(*run(lambda: use_model(output), [], scene.place / "log of use"), True)
    if met != WHOLE and (met != REFUSED or had_one):
        return f"{name}, its model so far: {met}"
    if not child.reaped and child.wait():
        return f"{name}: ended by a reader: {child.output()[-200:]}"
    again = scene.go_on(name, output)
    return met if again == WHOLE else again


def enough(scene: Scene) -> str:
    """End a training run early, by a signal or after a stop: its model must exist, and the run be finished."""
    name, output = scene.choose(*TRAINING), scene.place / "run"
    child = scene.start_and_wait(name, output)
    began, done = child.progress()
    if done > began and scene.draw.random() < 0.5:
        child.go_on()
        os.kill(child.pid, signal.SIGUSR1)
        code, printed = child.wait(), child.output()
    else:
        child.kill()
        code, printed = scene.run(name, output, lambda: None, "--finish-now")
    met = verdict(code, printed, True)
    if met != WHOLE:
        return met if met != REFUSED else scene.judge(name, output, code, printed, "--finish-now")
    met = verdict(*run(lambda: use_model(output), [], scene.place / "log of use"), True)
    code, printed = scene.run(name, output)
    return met if code == 0 and "finished" in printed else f"not finished: {printed[-200:]}"


def asked_to_end(scene: Scene) -> str:
    """Ask a run to end with SIGINT or SIGTERM, and run it again."""
    name, output = scene.choose(), scene.place / "run"
    child = scene.start_and_wait(name, output)
    number = scene.draw.choice((signal.SIGINT, signal.SIGTERM))
    if not child.ended():
        os.kill(child.pid, number)
        child.go_on()
    code = child.wait()
    if code not in (0, 128 + number, -number) or "Traceback" in child.output():
        return f"{name}, {number.name}: exit code {code}: {child.output()[-200:]}"
    return scene.go_on(name, output)


def reader_leaves(scene: Scene) -> str:
    """Close the pipe that a run prints into, after a random number of bytes."""
    name, output = scene.choose(), scene.place / "run"
    reads, writes = os.pipe()

    def print_into_it() -> None:
        os.close(reads)
        for stream in (1, 2):
            os.dup2(writes, stream)
        os.close(writes)

    child = scene.start(name, output, print_into_it)
    os.close(writes)
    os.read(reads, scene.draw.randrange(1, 2000))
    os.close(reads)
    return scene.judge(name, output, child.wait(), child.output())


def bare_surroundings(scene: Scene) -> str:
    """Start a run without a home, without a folder for temporary files, or without some of its streams."""
    name, output = scene.choose(), scene.place / "run"
    lacks = scene.draw.sample(("HOME", "TMPDIR", "0", "1", "2", "LANG"), 3)

    def take_away() -> None:
        for lack in lacks:
            if lack.isdigit():
                os.close(int(lack))
        os.environ.update({"LC_ALL": "C"} if "LANG" in lacks else {})
        os.environ.update({"TMPDIR": "/nowhere"} if "TMPDIR" in lacks else {})
        os.environ.pop("HOME" if "HOME" in lacks else "", None)

    return scene.judge(name, output, *scene.run(name, output, take_away))


OURS = ("state", "best", "last", "logs", "samples", ".lock", ".lock-owner", ".partial", ".digests.json", "run.json")


def links_in_the_output(scene: Scene) -> str:
    """Put a link to someone's folder or file into the folder of a run, while it runs or after a kill.

    While it runs, the link never replaces anything that is being written at that moment.
    """
    name, output, mine = scene.choose(), scene.place / "run", scene.place / "mine"
    child = scene.start_and_wait(name, output)
    goes_on = scene.draw.random() < 0.5
    if not goes_on:
        child.kill()
    output.mkdir(exist_ok=True)
    shutil.copytree(output, mine / "all", symlinks=True)
    for names in OURS:  # a folder that looks like a run's, and is not
        (mine / "all" / names).exists() or (mine / "all" / names).mkdir()
    before = _everything_in(mine)
    there = [*(str(path.relative_to(output)) for path in sorted(output.rglob("*"))), *OURS]
    chosen = output / scene.draw.choice([name for name in there if not goes_on or ".partial" not in name])
    link = chosen if chosen.parent.is_dir() else output / "state"
    if os.path.lexists(link):
        link.rename(scene.place / "aside")
    link.symlink_to(scene.draw.choice((mine / "all" / link.relative_to(output), mine / "all")))
    if goes_on:
        child.go_on()
        code = child.wait()
        if code == 0:  # finished files are not written again
            _put_back(link, scene.place / "aside")
        met = scene.judge(name, output, code, child.output())
    else:
        met = scene.go_on(name, output)
    if _everything_in(mine) != before:
        return f"{name}: {link.relative_to(output)} was followed"
    if met == REFUSED:
        _put_back(link, scene.place / "aside")
        again = scene.go_on(name, output)
        return met if again == WHOLE else f"{name}, without the link {link.relative_to(output)}: {again}"
    return met if met == WHOLE else f"{name}, {link.relative_to(output)}: {met}"


def _put_back(link: Path, aside: Path) -> None:
    """Remove a link, and restore what it replaced, unless something new is there."""
    if link.is_symlink():
        link.unlink()
    if aside.exists() and link.parent.is_dir() and not link.exists():
        aside.rename(link)


def _everything_in(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Return everything in a folder, including files that `content_of` ignores."""
    return {path: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
            for path in sorted(folder.rglob("*"))}  # fmt: skip


def two_runs(scene: Scene) -> str:
    """Start a run in a folder where another one is running, also on a disk without locks, and with a stray RANK."""
    name, output = scene.choose(), scene.place / "run"
    has_locks, rank = scene.draw.random() < 0.5, scene.draw.choice(("", "0", "1"))

    def surroundings() -> None:
        if rank:
            os.environ["RANK"] = rank
        if not has_locks:
            fcntl.lockf = _no_locks

    child = scene.start_and_wait(name, output, surroundings)
    if child.ended() or not {path.name for path in output.glob(".lock*")}:
        met = WHOLE  # it had not started yet, or was over
    else:
        flags = [*scene.lines[name], "--output", str(output)]
        second = Child(name.split()[0], flags, scene.place / "log of the second", surroundings)
        met = scene.judge(name, output, second.wait(), second.output(), "in use by another run")
    child.go_on()
    code = child.wait()
    first = scene.judge(name, output, code, child.output())
    return met if first == WHOLE else f"{name}, the first: {first}"


def _no_locks(*args: object) -> None:
    raise OSError(errno.ENOLCK, "no locks available")


def changed_while_learnt(scene: Scene) -> str:
    """Damage a shard of codes while a prior learns them, from memory or from the disk."""
    name, output, codes = scene.choose("train_prior"), scene.place / "run", scene.place / "codes"
    shutil.copytree(scene.artifacts / "codes", codes)
    flags = [str(codes) if flag.endswith("/codes") else flag for flag in scene.lines[name]]
    from_disk = scene.draw.random() < 0.5

    def surroundings() -> None:
        codegrid.data.codes.IN_MEMORY_BYTES = 0 if from_disk else 2**30

    child = Child(name, [*flags, "--output", str(output)], scene.place / "log", surroundings)
    wait_for_a_moment(child, output, scene.draw, scene.wholes[name][1])
    if not child.ended():
        child.stop()
    spoil(scene.draw.choice(sorted(codes.glob("codes-*"))), scene.draw)
    child.go_on()
    return scene.judge(name, output, child.wait(), child.output())


def edited_while_stopped(scene: Scene) -> str:
    """Damage or remove a file that a killed run has left, and run it again."""
    name, output = scene.choose(*(name for name in scene.lines if name not in TRAINING)), scene.place / "run"
    scene.start_and_wait(name, output).kill()
    left = [path for path in output.rglob("*") if path.suffix in (".npz", ".png", ".safetensors", ".json")]
    whole = [path for path in left if path.name != "run.json" and ".partial" not in path.parts]
    if whole:
        spoil(scene.draw.choice(sorted(whole)), scene.draw)
    return scene.go_on(name, output)


def spoil(path: Path, draw: random.Random) -> None:
    """Flip a bit of a file, cut it, empty it, replace or remove it."""
    content = bytearray(path.read_bytes())
    way = draw.choice(("flip", "cut", "noise", "remove")) if content else "remove"
    if way == "remove":
        return path.unlink()
    at = draw.randrange(len(content))
    if way == "flip":
        content[at] ^= 1 << draw.randrange(8)
    elif way == "cut":
        del content[at:]
    else:
        content = bytearray(np.random.default_rng(at).bytes(len(content)))
    path.write_bytes(content)
    return None


KINDS: dict[str, Callable[[Scene], str]] = {
    "models so far, loaded": models_so_far,
    "enough: SIGUSR1, --finish-now": enough,
    "SIGINT, SIGTERM": asked_to_end,
    "the reader closes the pipe": reader_leaves,
    "no home, no streams": bare_surroundings,
    "links inside the output": links_in_the_output,
    "two runs in one folder": two_runs,
    "codes changed while learnt": changed_while_learnt,
    "results edited while stopped": edited_while_stopped,
}
