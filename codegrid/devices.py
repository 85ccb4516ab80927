"""Devices by name: any that torch knows and sees on this machine."""

import torch

from .errors import InputError

Device = str | torch.device
NO_FLOAT64 = {"mps"}


def find_device(name: Device) -> torch.device:
    """Return a device: `cpu`, `cuda`, `cuda:1`, `mps`, `xpu` or another that torch knows; `auto` is cuda, else cpu.

    Raises `InputError` if torch does not see it on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        count = torch.get_device_module(device).device_count()
    except Exception as error:  # an unknown name or kind: each device type raises its own errors
        raise InputError(f"`device` {name}: torch has no such device: use cpu, cuda, cuda:1, mps, ...") from error
    if (device.index or 0) >= count:
        raise InputError(f"`device` {name}: torch sees {count or 'none'} of these on this machine: use `device` cpu")
    return device


def widest(device: Device) -> torch.dtype:
    """Return float64, in which sums and draws are computed, or float32 if the device has no float64."""
    return torch.float32 if torch.device(device).type in NO_FLOAT64 else torch.float64
