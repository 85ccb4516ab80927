"""Which device, which precision, how many processes."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from codegrid.errors import InputError

from .cli import say

Decision = TypeVar("Decision")


def start_accelerator(device: str, with_prose: bool = True, **options: Any) -> Accelerator:
    """Join the other processes that torchrun started, if any, and choose the device; `options` are `Accelerator`'s."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda, but torch sees no GPU: use --device cpu")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    keep_memory()
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32: a GPU's convolutions would round to 10 bits
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", **options)
    if with_prose:
        processes = f", {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
        say(f"device: {accelerator.device}{processes}")
    return accelerator


def keep_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones, up to 2 GiB, and not give it back at once.

    Otherwise each large tensor costs the operating system a page fault for every 4 KiB, at every step again. Where
    MALLOC_MMAP_THRESHOLD_ is set in the environment, or the C library is another one, nothing changes.
    """
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        trim_threshold, top_pad, mmap_threshold, arena_max = -1, -2, -3, -8  # the names of malloc.h
        limit = 2**31 - 1
        # versions before 2.35 take at most 32 MiB; where neither is taken, the rest would only do harm
        if mallopt(mmap_threshold, limit) or mallopt(mmap_threshold, 2**25):
            for parameter, value in ((trim_threshold, limit), (top_pad, 2**26), (arena_max, 1)):
                mallopt(parameter, value)


def decide_on_main(accelerator: Accelerator, decide: Callable[[], Decision]) -> Decision:
    """What `decide` returns on the main process, on every process; an `InputError` that it raises, likewise.

    For what depends on the disk: processes that look at different times see different files.
    """
    outcome: list = [None]
    if accelerator.is_main_process:
        try:
            outcome = [decide()]
        except InputError as error:  # the others would wait for ever
            outcome = [error]
    broadcast_object_list(outcome)
    if isinstance(outcome[0], InputError):
        raise outcome[0]
    return outcome[0]


def leave_together(accelerator: Accelerator) -> None:
    """End the run of all processes at once: one that leaves while another still talks to it can abort."""
    accelerator.wait_for_everyone()
    accelerator.end_training()


def choose_device(device: str) -> torch.device:
    """The device of a script that runs as one process."""
    accelerator = start_accelerator(device, with_prose=False)
    if accelerator.num_processes > 1:
        raise InputError("this script runs as one process: start it with python -m, without torchrun")
    return accelerator.device


def choose_precision(precision: str, device: torch.device) -> str:
    """`bf16` or `fp32`; `auto` takes bf16 where the processor has instructions for it."""
    if precision != "auto":
        return precision
    return "bf16" if _computes_in_bf16(device) else "fp32"


class Execution(NamedTuple):
    """How a training step is computed; none of it changes what is computed, but for rounding."""

    precision: str  # bf16 or fp32
    memory_format: torch.memory_format
    fused: bool  # the optimizer
    compiled: bool

    def adam(self, parameters: Iterable[torch.Tensor], lr: float) -> torch.optim.Adam:
        """The optimizer of these weights."""
        kind = {"fused": True} if self.fused else {"foreach": False}
        return torch.optim.Adam(parameters, lr=lr, **kind)

    def __str__(self) -> str:
        layout = "channels_last" if self.memory_format == torch.channels_last else "contiguous"
        return f"{self.precision}, {layout}, {'fused' if self.fused else 'plain'} Adam" + ", compiled" * self.compiled


def choose_execution(settings: Any, device: torch.device) -> Execution:
    """What the settings say, and for what they leave open what is fast on this device."""
    precision = choose_precision(settings.precision, device)
    if settings.compile:
        require_compiler(device)
    layout = torch.channels_last if settings.memory_format == "channels-last" else torch.contiguous_format
    return Execution(precision, layout, settings.optimizer == "fused", settings.compile)


def require_compiler(device: torch.device) -> None:
    """Raise InputError where `torch.compile` would find no compiler."""
    compilers = (os.environ.get("CXX", ""), "g++", "clang++")
    if device.type == "cpu" and not any(name and shutil.which(name) for name in compilers):
        raise InputError("--compile needs a C++ compiler, g++ for example: install one, or leave --compile out")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which a training step runs forward."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def without_compiling() -> AbstractContextManager[None]:
    """A context in which compiled networks run as written: batches of other sizes are not worth a compilation."""
    return torch.compiler.set_stance("force_eager")


def refuse_unequal(accelerator: Accelerator, step: int) -> None:
    """Raise InputError where the processes do not all start at the same step."""
    steps = set(accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist())
    if len(steps) > 1:
        raise InputError(
            f"the processes see training states of different steps ({', '.join(map(str, sorted(steps)))}): "
            "--output must be a folder that all machines share"
        )


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # without them bf16 is emulated, and slow
    return any(getattr(torch.cpu, check)() for check in checks if hasattr(torch.cpu, check))
