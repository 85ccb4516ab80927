"""Which device, which precision, how many processes."""

from __future__ import annotations

import ctypes
import os
import sys

import torch
from accelerate import Accelerator

from storage.errors import InputError

from .cli import say


def start_accelerator(device: str, with_prose: bool = True) -> Accelerator:
    """Join the other processes that torchrun started, if any, and choose the device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda, but torch sees no GPU: use --device cpu")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    keep_memory()
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32: a GPU's convolutions would round to 10 bits
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")
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
        for parameter, value in (
            (mmap_threshold, limit), (trim_threshold, limit), (top_pad, 2**26), (arena_max, 1),
        ):  # fmt: skip
            mallopt(parameter, value)


def leave_together(accelerator: Accelerator) -> None:
    """End the run of all processes at once: one that leaves while another still talks to it can abort."""
    accelerator.wait_for_everyone()
    accelerator.end_training()


def choose_device(device: str) -> torch.device:
    """The device of a script that runs as one process."""
    return start_accelerator(device, with_prose=False).device


def choose_precision(precision: str, device: torch.device) -> str:
    """`bf16` or `fp32`; `auto` takes bf16 where the processor has instructions for it."""
    if precision != "auto":
        return precision
    return "bf16" if _computes_in_bf16(device) else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which a training step runs forward."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def _computes_in_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # without them bf16 is emulated, and slow
    return any(getattr(torch.cpu, check)() for check in checks if hasattr(torch.cpu, check))
