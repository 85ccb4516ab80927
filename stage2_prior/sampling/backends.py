"""Backends: ways to compute the same samples. Nothing here imports torch: command lines are made from it."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from codegrid.errors import InputError
from codegrid.limits import check_name

if TYPE_CHECKING:
    import torch

# plain: a forward pass a step, the reference; torch: nothing computed twice; graph: that on a GPU, a row of sites as
# one CUDA graph; compiled: that with torch.compile, which takes a minute for each batch size, and is slower on a CPU
BACKENDS = ("auto", "plain", "torch", "graph", "compiled", "native")


def choose_backend(backend: str, device: torch.device) -> str:
    """Return the backend that a name stands for on a device: `plain`, `torch`, `graph` or `compiled`.

    Raises `InputError` where there is none of this name, or the machine lacks what it needs.
    """
    check_name("backend", backend, BACKENDS)
    if backend == "native":
        raise InputError("`backend` native: there is no native sampler of this prior; choose torch, or leave it out")
    if backend == "compiled":
        require_compiler(device, "`backend` compiled")
    if backend == "graph" and device.type != "cuda":
        raise InputError(f"`backend` graph: CUDA graphs need a GPU, and the prior is on {device}: choose torch")
    if backend == "auto":
        return "graph" if device.type == "cuda" else "torch"
    return backend


def require_compiler(device: torch.device, use: str) -> None:
    """Raise `InputError`, saying what `use` needs, where `torch.compile` would find no compiler."""
    compilers = (os.environ.get("CXX", ""), "g++", "clang++")
    if device.type == "cpu" and not any(name and shutil.which(name) for name in compilers):
        raise InputError(f"{use} needs a C++ compiler, g++ for example: install one, or leave it out")
