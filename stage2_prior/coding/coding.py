"""Codes as symbols of an entropy coder, with their priors as the model: the same lines write and read them.

Shapes: n samples of a chunk, b samples computed at once, s sites of a step, K num_embeddings, *shape the sites of a
grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from codegrid.codes import Codes, Condition
from codegrid.drawn_priors import Steps
from codegrid.errors import InputError
from codegrid.protocols import Prior
from codegrid.stage2_prior.sampling.checks import flatten, start_grids
from codegrid.stage2_prior.sampling.draw import condition_of

from .frequencies import frequencies
from .streams import Stream

SAME = "native"  # the backend whose logits have the same bits on every processor and in any batch
BACKENDS = ("auto", SAME, "torch", "plain")


def choose_coding(priors: Sequence[Prior], backend: str = "auto") -> str:
    """Return the backend that codes: `native` if all priors have steps of the same bits everywhere, else `torch`.

    Raises `InputError` if a prior cannot drive a coder, or not by this backend.
    """
    for prior in priors:
        if not hasattr(prior, "steps"):
            raise InputError(
                f"`prior`: a {type(prior).__name__} cannot compress codes: it tells their probabilities neither one "
                "after the other nor grid by grid; train one that does, a pixelcnn for example"
            )
    reason = why_not_same(priors)
    if backend == SAME and reason:
        raise InputError(f"`backend` {SAME}: {reason}; choose `backend` torch, or leave it out")
    return backend if backend != "auto" else "torch" if reason else SAME


def why_not_same(priors: Sequence[Any]) -> str:
    """Return the reason why one of the priors has no steps of the same bits everywhere; empty if all have."""
    for prior in priors:
        find_reason = getattr(prior, "why_not_same", None)
        if reason := find_reason() if find_reason else "this prior has no steps in native code":
            return str(reason)
    return ""


@torch.no_grad()
def code_chunk(
    priors: Sequence[Prior],
    given: Condition,
    count: int,
    stream: Stream,
    codes: Codes | None = None,
    backend: str = SAME,
    batch_size: int = 256,
    tell: Callable[[int], object] = lambda sites: None,
) -> Codes:
    """Write the codes (n, *shape) of all grids into a stream, or read them from it; return them, on the CPU.

    At each step the symbols of all samples follow one another. So a chunk must be read whole, as it was written; in
    which batches it is computed makes no difference with the backend `native`.

    Args:
        priors: of one tokenizer, coarse to fine.
        given: the condition of each sample.
        count: n.
        stream: either side of a coder.
        codes: to write; ignored in reading.
        backend: as `choose_coding` returns it.
        batch_size: samples computed at once; with another backend than `native` it must be that of the writer.
        tell: called with the codes that are done since the last call.
    """
    finished: dict[int, Tensor] = {}
    # PyTorch has its own threads, of which another thread than this one would use another number
    threads = torch.get_num_threads() if backend == SAME else 1
    parts = _split(count, batch_size, threads)
    for prior in priors:
        own = None if codes is None else [codes[grid] for grid in prior.grids]
        condition = condition_of(prior, given, finished, alone=len(priors) == 1)
        every = [_start(cast(Any, prior), condition.rows(rows), rows, backend) for rows in parts]
        with ThreadPoolExecutor(threads) as pool:
            compute = pool.map if threads > 1 else map
            coded = _code_grids(prior, every, parts, count, stream, own, compute, tell)
        finished.update(zip(prior.grids, coded, strict=True))
    return tuple(finished[grid] for grid in sorted(finished))


def _split(count: int, batch_size: int, threads: int) -> list[slice]:
    """Return the batches of a chunk: of at most `batch_size` samples, and enough for all threads."""
    size = min(batch_size, -(-count // threads))
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def _start(prior: Any, given: Condition, rows: slice, backend: str) -> Steps:
    count = rows.stop - rows.start
    steps: Steps = prior.same_steps(given, count) if backend == SAME else prior.steps(given, count, backend)
    return steps


def _code_grids(
    prior: Prior,
    every: list[Steps],
    parts: list[slice],
    count: int,
    stream: Stream,
    codes: Sequence[Tensor] | None,
    compute: Callable[..., Iterable[np.ndarray]],
    tell: Callable[[int], object],
) -> Codes:
    """Write or read the codes of one prior's grids, step by step, batch after batch.

    `compute` applies a function to all of a list, as `map` does.
    """
    coded, _ = start_grids(prior.layout, count, torch.device("cpu"))
    sites = flatten(coded)
    wanted = None if codes is None else [grid.flatten(1).numpy() for grid in codes]
    order, last = every[0].order, len(every[0].order) - 1
    for number, (grid, here) in enumerate(order):
        place = slice(here.start, here.stop)
        for rows, counts in zip(parts, compute(_next_frequencies, every), strict=True):
            own = None if wanted is None else np.ascontiguousarray(wanted[grid][rows, place], np.int32).ravel()
            read = torch.from_numpy(stream.code(counts, own).astype(np.int64))
            sites[grid][rows, place] = read.view(-1, len(here))
        if number < last:
            for steps, rows in zip(every, parts, strict=True):
                steps.append(sites[grid][rows, place].to(prior.device))
        tell(count * len(here))
    return coded


def _next_frequencies(steps: Steps) -> np.ndarray:
    """Return the frequencies (b · s, K) of a step's codes."""
    with torch.no_grad():  # it does not reach into threads
        return frequencies(steps.next_logits().flatten(0, 1).float().cpu().numpy())
