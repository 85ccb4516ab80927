"""The kind of machine that results in floating point depend on."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from codegrid.errors import InputError

from .container import Header


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
