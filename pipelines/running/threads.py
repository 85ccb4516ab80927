"""The threads that compute on a CPU: which number a run takes, and setting it."""

from __future__ import annotations

import os

import torch

from .cli import count_processes
from .cores import choose_threads
from .run_folder import read_threads
from .settings import Compute

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # by which a user, or torchrun, chooses

_own: dict[int, int] = {}  # the number that torch had before, by the one that was set in its place


def find_threads(settings: Compute) -> tuple[int, str]:
    """Return how many threads are to compute, and where torch would take another number, why.

    The settings say it, or the environment, or the run that is continued; else it is what this machine has free.
    """
    usual = _usual_threads()
    if settings.threads is not None:
        return settings.threads, ""
    if any(map(os.environ.get, VARIABLES)):
        return usual, ""
    begun = read_threads(settings)
    if begun is not None:
        more = f"; {usual} are usual here" if begun > usual else ""
        return begun, "" if begun == usual else f"as this run began{more}"
    return choose_threads(usual, int(os.environ.get("LOCAL_WORLD_SIZE", count_processes())))


def use_threads(count: int, why: str) -> str:
    """Compute with so many threads from here on. Returns a line about it, where there is a reason for one."""
    usual = _usual_threads()
    torch.set_num_threads(count)
    _own.clear()
    _own[count] = usual
    return f"{count} thread{'s' * (count > 1)}: {why}" if why else ""


def _usual_threads() -> int:
    """Return how many threads torch takes by itself, or by what the program set; not what was set here."""
    now = torch.get_num_threads()
    return _own.get(now, now)
