"""The kind of machine that results in floating point depend on."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from typing import Any, TypeVar

import torch

from codegrid.errors import InputError

from .container import Header

Model = TypeVar("Model")


def on_cpu(model: Model) -> Model:
    """Return a model if it is on the CPU, or else a copy of it that is."""
    module: Any = model
    return model if module.device.type == "cpu" else deepcopy(module).to("cpu")


def same_each_time() -> AbstractContextManager[None]:
    """Return a context in which a GPU gives the same bits each time, which cuDNN's fastest convolutions may not."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def this_machine(device: torch.device) -> str:
    """Return the kind of a device and its library: those that give the same bits have the same."""
    if device.type == "cpu":
        kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    else:
        kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{kind}, PyTorch {torch.__version__}"


@contextmanager
def as_it_was(source: str, header: Header, device: torch.device, batch_size: int | None) -> Iterator[None]:
    """Compute as when a file was made, with as many threads, within the context, if its content depends on that.

    Raises `InputError` if that was on another kind of machine, or in other batches.
    """
    if not header.machine:
        yield
        return
    made = f"{source} was compressed by `backend` {header.backend}"
    if (here := this_machine(device)) != header.machine:
        words = f"{made} on {header.machine}, and this is {here}: the results would differ"
        raise InputError(f"{words}: decompress it on such a machine")
    if batch_size not in (None, header.batch_size):
        raise InputError(f"`batch_size` {batch_size}: {made} in batches of {header.batch_size}: leave it out")
    threads = torch.get_num_threads()
    torch.set_num_threads(header.threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
