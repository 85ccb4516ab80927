"""The device, the precision and the memory of a run."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from codegrid.devices import find_device
from codegrid.errors import InputError
from codegrid.stage2_prior.sampling.backends import require_compiler

from .cli import count_processes, print_once
from .launch import join_launch
from .settings import Compute, Training
from .threads import find_threads, use_threads

Module = TypeVar("Module", bound=nn.Module)

ENGINES = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
PATIENCE = timedelta(hours=2)  # how long processes wait for the first one, which may be reading a large data set


def start_accelerator(settings: Compute, with_prose: bool = True, **options: Any) -> Accelerator:
    """Join the other processes that were started with this one, if any; choose the device, and the threads of a CPU.

    Args:
        settings: the command's. Of the flags of `accelerate launch`, the number of processes and `--cpu` count too.
        with_prose: print the device. Otherwise print a line only if there are fewer threads than usual.
        options: for `Accelerator`.

    Raises `InputError` if `accelerate launch` was told to use another engine.
    """
    join_launch()
    device = settings.device
    chosen = find_device("cpu" if device == "auto" and _is_on("ACCELERATE_USE_CPU") else device)
    for engine in filter(_is_on, ENGINES):
        raise InputError(f"{engine} is set, but codegrid has its own engine: unset it; `shard` splits a prior")
    several = count_processes() > 1
    if several and chosen.index is not None:
        raise InputError(f"`device` {chosen}: each of several processes uses its own: give `device` {chosen.type}")
    keep_memory()
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32: TF32 convolutions would round to 10 bits
    if not several and PartialState._shared_state and PartialState().device != chosen:
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier call in this program used another device
    computes = chosen.type == "cpu" or settings.threads is not None  # beside a GPU the CPU compresses, for example
    threads = find_threads(settings) if computes else None  # now, before the main process writes run.json
    ours = {"ACCELERATE_USE_CPU": str(chosen.type == "cpu"), "ACCELERATE_DYNAMO_BACKEND": "no"}
    with environment(**ours, **{} if several else {"ACCELERATE_TORCH_DEVICE": str(chosen)}):
        patience = InitProcessGroupKwargs(timeout=PATIENCE)
        accelerator = Accelerator(cpu=chosen.type == "cpu", mixed_precision="no", kwargs_handlers=[patience], **options)
    words = use_threads(*threads) if threads else ""
    if with_prose:
        processes = f", {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
        print_once(f"device: {accelerator.device}{processes}{words and ', ' + words}")
    elif words:
        print_once(words)
    return accelerator


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes")


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables within the context."""
    earlier = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in earlier.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def place(module: Module, device: torch.device) -> Module:
    """Move a network to its device, its kernels in the memory format in which convolutions are fast."""
    module.to(device)
    for parameter in module.parameters():
        parameter.data = channels_last(parameter.data)
    return module


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Return (b, c, H, W) or (b, c, T, H, W) with the channels innermost in memory; other tensors unchanged."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.ndim]) if x.ndim in formats else x


def choose_device(settings: Compute) -> torch.device:
    """Return the device of a command that runs as one process, and set the number of threads on a CPU."""
    accelerator = start_accelerator(settings, with_prose=False)
    if accelerator.num_processes > 1:
        raise InputError("this command runs as one process: start it without torchrun, srun or accelerate launch")
    return accelerator.device


def keep_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones, up to 2 GiB, instead of giving it back at once.

    Otherwise each large tensor costs a page fault for every 4 KiB, at every step again. If MALLOC_MMAP_THRESHOLD_ is
    set in the environment, or the C library is not glibc, nothing changes.
    """
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        trim_threshold, top_pad, mmap_threshold, arena_max = -1, -2, -3, -8  # as in malloc.h
        limit = 2**31 - 1
        # versions before 2.35 accept at most 32 MiB; if neither is accepted, the rest would only do harm
        if mallopt(mmap_threshold, limit) or mallopt(mmap_threshold, 2**25):
            for parameter, value in ((trim_threshold, limit), (top_pad, 2**26), (arena_max, 1)):
                mallopt(parameter, value)


# 2.6 counts the gradient of an embedding's row only once if the row occurs several times; 2.7 and 2.14 do not
RIGHT_GRADIENTS = "2.7"


class ComputeConfig(NamedTuple):
    """The precision and compilation of a training step; they change the results only by rounding."""

    precision: str  # bf16 or fp32
    compiled: bool = False

    def __str__(self) -> str:
        return self.precision + ", compiled" * self.compiled


def choose_compute(settings: Training, device: torch.device) -> ComputeConfig:
    """Return how to compute: as the settings say, and otherwise what is fast on this device."""
    if settings.compile:
        require_compiler(device, "`compile`")
        if device.type == "cpu" and torch.__version__ < RIGHT_GRADIENTS:
            raise InputError(
                f"`compile`: PyTorch {torch.__version__} computes gradients of embeddings wrongly when it compiles for "
                "CPUs: leave it out, or install PyTorch 2.7 or newer"
            )
    return ComputeConfig(choose_precision(settings.precision, device), settings.compile)


def choose_precision(precision: str, device: torch.device) -> str:
    """Return `bf16` or `fp32`; `auto` means bf16 if the processor has instructions for it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        is_fast = torch.cuda.get_device_capability(device)[0] >= 8
    else:  # without these instructions bf16 is emulated, and slow
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported") if device.type == "cpu" else ()
        is_fast = any(getattr(torch.cpu, check)() for check in checks if hasattr(torch.cpu, check))
    return "bf16" if is_fast else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context for the forward pass of a training step."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def without_compiling() -> AbstractContextManager[None]:
    """Return a context in which compiled networks run uncompiled: other batch sizes are not worth a compilation."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes two seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
