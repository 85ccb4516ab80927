"""Which device, which precision, how many processes."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from storage.errors import InputError

from .cli import say


def start_accelerator(device: str, with_prose: bool = True) -> Accelerator:
    """Join the other processes that torchrun started, if any, and choose the device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda, but torch sees no GPU: use --device cpu")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")
    if with_prose:
        processes = f", {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
        say(f"device: {accelerator.device}{processes}")
    return accelerator


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
