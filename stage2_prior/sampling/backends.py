"""Backends: ways to compute the same samples. Nothing here imports torch: command lines are made from it."""

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

# plain: a forward pass a step, the reference; torch: nothing computed twice; compiled: that with torch.compile, on a
# GPU as CUDA graphs: each batch size is compiled once, in a minute, and on a CPU `torch` is faster; native: in C++, for
# float32 on a CPU, in half the time of `torch`
BACKENDS = ("auto", "plain", "torch", "compiled", "native")


def choose_backend(backend: str, prior: Prior) -> str:
    """Return the backend that a name stands for with a prior: `plain`, `torch`, `compiled` or `native`.

    On a CPU `auto` is `native` where the prior's `why_not_native`, if it has one, finds no reason against it. Such a
    reason is said, once.

    Raises `InputError` where there is none of this name, or the machine lacks what it needs.
    """
    check_name("backend", backend, BACKENDS)
    find_reason = getattr(prior, "why_not_native", None)
    if backend == "native":
        reason = find_reason() if find_reason else "this prior has no native sampler"
        if reason:
            raise InputError(f"`backend` native: {reason}; choose `backend` torch, or leave it out")
    if backend == "compiled":
        require_compiler(prior.device, "`backend` compiled")
    if backend != "auto":
        return backend
    if find_reason is None or prior.device.type != "cpu":
        return "torch"
    reason = find_reason()
    if reason:
        say_once(f"sampling goes on in PyTorch, at half the speed: {reason}")
    return "torch" if reason else "native"


def backend_of(priors: Sequence[Prior], backend: str) -> str:
    """Return the backend that a name stands for with several priors; `auto` where they differ."""
    names = {choose_backend(backend, prior) for prior in priors}
    return names.pop() if len(names) == 1 else backend


@cache
def say_once(line: str) -> None:
    """Print a line if it has not been printed yet."""
    if os.environ.get("RANK", "0") == "0":  # the first of several processes
        say(line)


def require_compiler(device: torch.device, use: str) -> None:
    """Raise `InputError`, saying what `use` needs, where `torch.compile` would find no compiler."""
    compilers = (os.environ.get("CXX", ""), "g++", "clang++")
    if device.type == "cpu" and not any(name and shutil.which(name) for name in compilers):
        raise InputError(f"{use} needs a C++ compiler, g++ for example: install one, or leave it out")
