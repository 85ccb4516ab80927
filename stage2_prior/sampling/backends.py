"""Backends: ways to compute the same samples. Nothing here imports torch: command lines are built from it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from codegrid.errors import InputError
from codegrid.limits import check_name
from codegrid.progress import say

if TYPE_CHECKING:
    import torch

    from codegrid.protocols import Prior

# plain: a forward pass per step, the reference; torch: nothing computed twice; native: torch's steps in C++, for
# float32 on a CPU, in half the time; graph: torch's steps on a GPU, a row of sites as one CUDA graph; compiled: torch's
# steps with torch.compile, which takes a minute for each batch size, and is slower on a CPU
BACKENDS = ("auto", "plain", "torch", "native", "graph", "compiled")


def choose_backend(backend: str, prior: Prior) -> str:
    """Return the backend that a name stands for with a prior: one of `BACKENDS` except `auto`.

    `auto` is `graph` on a GPU if the prior `has_graphs`, `native` on a CPU if the prior has a `why_not_native` that
    finds no reason against it, and otherwise `torch`. Such a reason is printed, once.

    Raises `InputError` if the name is unknown, or the machine or the prior does not support the backend.
    """
    check_name("backend", backend, BACKENDS)
    find_reason = getattr(prior, "why_not_native", None)
    if backend == "native":
        reason = find_reason() if find_reason else "this prior has no native sampler"
        if reason:
            raise InputError(f"`backend` native: {reason}; choose `backend` torch, or leave it out")
    if backend == "compiled":
        require_compiler(prior.device, "`backend` compiled")
        if not getattr(prior, "can_compile", False):
            raise InputError("`backend` compiled: this prior has no compiled sampler; choose torch, or leave it out")
    on_gpu, has_graphs = prior.device.type == "cuda", getattr(prior, "has_graphs", False)
    if backend == "graph" and not (on_gpu and has_graphs):
        reason = f"CUDA graphs need a GPU, but the prior is on {prior.device}" if has_graphs else "this prior has none"
        raise InputError(f"`backend` graph: {reason}: choose torch, or leave it out")
    if backend != "auto":
        return backend
    if on_gpu and has_graphs:
        return "graph"
    if find_reason is None or prior.device.type != "cpu":
        return "torch"
    reason = find_reason()
    if reason:
        say_once(f"sampling in PyTorch, at half the speed: {reason}")
    return "torch" if reason else "native"


def backend_of(priors: Sequence[Prior], backend: str) -> str:
    """Return the backend that a name stands for with several priors; the name itself if they differ."""
    names = {choose_backend(backend, prior) for prior in priors}
    return names.pop() if len(names) == 1 else backend


@cache
def say_once(line: str) -> None:
    """Print a line if it has not been printed yet."""
    if os.environ.get("RANK", "0") == "0":  # the first of several processes
        say(line)


def require_compiler(device: torch.device, use: str) -> None:
    """Raise `InputError`, saying what `use` needs, if `torch.compile` would find no compiler."""
    compilers = (os.environ.get("CXX", ""), "g++", "clang++")
    if device.type == "cpu" and not any(name and shutil.which(name) for name in compilers):
        raise InputError(f"{use} needs a C++ compiler, g++ for example: install one, or leave it out")
