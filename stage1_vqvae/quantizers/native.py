"""The search for the nearest entry in C++, for float32 on a CPU: product and minimum at once, each row by itself.

Shapes: n sites, D embedding_dim, K codebook entries, V lanes of a vector, p panels of 2V entries.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from codegrid.native.build import Library, library_or_reason

WORTH_A_THREAD = 2**20  # products of numbers: they take longer than to wake a thread


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    library.nearest_lanes.restype, library.nearest_lanes.argtypes = number, []
    arguments: list[Any] = [pointer, number, number, pointer, pointer, number, pointer, pointer, number]
    library.nearest_search.restype, library.nearest_search.argtypes = None, arguments
    return library


NEAREST = Library(Path(__file__).with_name("nearest.cpp"), _declare)


@cache
def _parallel() -> int | None:
    """Return the address of the OpenMP function that runs another one in PyTorch's threads; None if there is none.

    Threads of our own would share the cores with those, which spin for milliseconds before they sleep.
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):
        return None


def find_library(sites: torch.Tensor, entries: torch.Tensor) -> ctypes.CDLL | None:
    """Return the library that finds nearest entries for such tensors on this machine; None if there is none."""
    suits = all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in (sites, entries))
    if not suits or torch.compiler.is_compiling() or not _parallel():
        return None
    library = library_or_reason(NEAREST)
    return None if isinstance(library, str) else library


def search(library: ctypes.CDLL, sites: torch.Tensor, entries: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Return each site's entry with the smallest offset − z·entry: sites (n, D), entries (K, D), offsets (K,) → (n,).

    A row's code does not depend on the rows beside it, nor on the number of threads. Of equal gaps, the first wins.
    """
    panel = 2 * library.nearest_lanes()
    missing = -len(entries) % panel
    panels = F.pad(-entries, (0, 0, 0, missing)).unflatten(0, (-1, panel)).transpose(1, 2).contiguous()  # (p, D, 2V)
    padded = F.pad(offsets, (0, missing), value=torch.inf)
    sites = sites.contiguous()
    codes = torch.empty(len(sites), dtype=torch.int64, device="cpu")
    threads = max(1, min(torch.get_num_threads(), sites.numel() * len(entries) // WORTH_A_THREAD))
    numbers, weights = (sites.data_ptr(), *sites.shape), (panels.data_ptr(), padded.data_ptr(), len(panels))
    library.nearest_search(*numbers, *weights, codes.data_ptr(), _parallel(), threads)
    return codes
