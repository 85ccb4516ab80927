"""The number of threads that compute on a CPU: choosing it, and setting it."""

from __future__ import annotations

import os

import torch

from .cli import count_processes
from .cores import choose_threads
from .run_folder import read_threads
from .settings import Compute

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # set by a user, or by torchrun

_own: dict[int, int] = {}  # number set here → the number that torch had before


def find_threads(settings: Compute) -> tuple[int, str]:
    """Return how many threads to compute with, and the reason if torch's own number is another.

    The settings decide, or the environment, or the run that is continued; otherwise the cores that are free.
    """
    usual = _usual_threads()
    if settings.threads is not None:
        return settings.threads, ""
    if any(map(os.environ.get, VARIABLES)):
        return usual, ""
    begun = read_threads(settings)
    if begun is not None:
        more = f"; {usual} are usual here" if begun > usual else ""
        return begun, "" if begun == usual else f"as when this run began{more}"
    return choose_threads(usual, int(os.environ.get("LOCAL_WORLD_SIZE", count_processes())))


def use_threads(count: int, why: str) -> str:
    """Set the number of threads. Returns a line about it if there is a reason to print one."""
    usual = _usual_threads()
    torch.set_num_threads(count)
    _own.clear()
    _own[count] = usual
    return f"{count} thread{'s' * (count > 1)}: {why}" if why else ""


def _usual_threads() -> int:
    """Return how many threads torch, or the calling program, would use without the number set here."""
    now = torch.get_num_threads()
    return _own.get(now, now)
