"""Which items a training step sees: everything follows from (seed, step); and how they are read and cut.

Shapes: n items of the data set.
"""

import signal
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from codegrid.errors import InputError
from codegrid.noise import rng

Items = TypeVar("Items")
Indices = Sequence[int] | np.ndarray | torch.Tensor


class StepSampler(Sampler[list[int]]):
    """Item numbers of each step from `start` to `stop`, this process's share of them.

    The epochs, each a permutation that follows from (seed, epoch), form one endless row, and step t takes the
    items t·batch_size ... (t+1)·batch_size of it. So a step is the same however often training was resumed, and
    however many processes share it.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, start: int, stop: int, rank: int = 0, num_processes: int = 1
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start, self.stop = start, stop
        share = batch_size // num_processes
        self.share = slice(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start, self.stop):
            epochs, places = np.divmod(np.arange(step * self.batch_size, (step + 1) * self.batch_size), self.length)
            chosen = np.empty(self.batch_size, dtype=np.int64)
            for needed in np.unique(epochs).tolist():
                if needed != epoch:
                    epoch, order = needed, rng(self.seed, "epoch", needed).permutation(self.length)
                chosen[epochs == needed] = order[places[epochs == needed]]
            yield chosen[self.share].tolist()


def check_shares(batch_size: int, num_processes: int, accumulate: int) -> None:
    """Raise `InputError` where a batch cannot be cut into equal pieces."""
    if batch_size % (num_processes * accumulate):
        among = [f"{num_processes} processes"] * (num_processes > 1) + [f"{accumulate} pieces"] * (accumulate > 1)
        raise InputError(f"`batch_size` {batch_size} cannot be shared by {' of '.join(among)}: use a multiple")


def pieces_of(batch: Items, count: int) -> list[Items]:
    """Cut a batch into `count` pieces of its kind.

    Tensors are cut along their first axis, and so are lists of texts. Tuples, named tuples, dicts and lists of
    tensors are gone through, however nested; anything else is in every piece.
    """
    return [batch] if count == 1 else [_piece(batch, number, count) for number in range(count)]


def _piece(value: Any, number: int, count: int) -> Any:
    if isinstance(value, dict):
        return {name: _piece(part, number, count) for name, part in value.items()}
    if isinstance(value, tuple) or (isinstance(value, list) and value and isinstance(value[0], torch.Tensor)):
        parts = [_piece(part, number, count) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, torch.Tensor | list):
        rows = -(-len(value) // count)
        return value[number * rows : (number + 1) * rows]
    return value


def load_batches(dataset: Any, batches: Sampler[list[int]] | Sequence[Sequence[int]], num_workers: int = 0) -> Iterator:
    """Yield the data set's batches for lists of item numbers.

    Pictures that are decoded on demand (`dataset.on_demand`) are read by workers. `InputError`s come from them too.
    """
    loader: DataLoader[Any] = DataLoader(
        _Reader(dataset),  # type: ignore[arg-type]
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=_as_it_is,
        num_workers=num_workers if getattr(dataset, "on_demand", False) else 0,
        worker_init_fn=ignore_in_worker,
    )
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield batch


class _Reader:
    """Hands an InputError on as a value: raised in a worker, it would come back wrapped in a traceback."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        try:
            return self.dataset.batch(indices)
        except InputError as error:
            return error


def ignore_in_worker(worker: int) -> None:
    """Let a data loading worker ignore signals to a whole group of processes: the main process decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch


def item_numbers(indices: Indices, length: int | None = None) -> np.ndarray:
    """Return item numbers as an array (b,) int64.

    Args:
        indices: a list, an array or a tensor of whole numbers.
        length: of the data set, if known: then `indices` may also be a mask (length,), and may count from the end.

    Raises TypeError where they are something else, and IndexError where the data set is shorter.
    """
    numbers = np.asarray(indices.cpu() if isinstance(indices, torch.Tensor) else indices)
    if length is not None and numbers.dtype == bool and numbers.ndim == 1:
        if len(numbers) != length:
            raise IndexError(f"a mask of {len(numbers):,} items, but there are {length:,}")
        return np.flatnonzero(numbers)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise TypeError(f"item numbers {indices!r:.60}: they must be a list of whole numbers")
    numbers = numbers.astype(np.int64)
    if length is None:
        return numbers
    outside = numbers[(numbers < -length) | (numbers >= length)]
    if outside.size:
        raise IndexError(f"item {outside[0]}, but there are {length:,}")
    return np.where(numbers < 0, numbers + length, numbers)


def in_order(length: int, batch_size: int) -> list[range]:
    """Return all items once, in order, in batches; the last one may be short."""
    return in_batches(range(length), batch_size)


def in_batches(items: Items, batch_size: int) -> list[Items]:
    """Cut a row of item numbers into batches; the last one may be short."""
    return [items[first : first + batch_size] for first in range(0, len(items), batch_size)]  # type: ignore
