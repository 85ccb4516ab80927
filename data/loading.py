"""Which items a training step sees: everything follows from (seed, step); and how they are read and cut.

Shapes: n items of the data set.
"""

import signal
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Sampler

from codegrid.errors import InputError

Items = TypeVar("Items")


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
            for needed in np.unique(epochs):
                if needed != epoch:
                    epoch, order = needed, np.random.default_rng([self.seed, needed]).permutation(self.length)
                chosen[epochs == needed] = order[places[epochs == needed]]
            yield chosen[self.share].tolist()


def check_shares(batch_size: int, num_processes: int, accumulate: int) -> None:
    """Raise InputError where a batch cannot be cut into equal pieces."""
    if batch_size % (num_processes * accumulate):
        among = [f"{num_processes} processes"] * (num_processes > 1) + [f"{accumulate} pieces"] * (accumulate > 1)
        raise InputError(f"--batch-size {batch_size} cannot be shared by {' of '.join(among)}: use a multiple")


def pieces_of(batch: Items, count: int) -> list[Items]:
    """A batch of tensors cut into `count` pieces of the same kind."""
    if count == 1:
        return [batch]
    parts = [[None] * count if part is None else part.chunk(count) for part in batch]
    return [type(batch)(*piece) for piece in zip(*parts, strict=True)]


def load_batches(dataset: Any, batches: Sampler[list[int]] | list[range], num_workers: int = 0) -> Iterator[Any]:
    """The data set's batches for lists of item numbers, decoded by workers where it does not sit in memory.

    What cannot be read raises `InputError`, from a worker too.
    """
    in_memory = not hasattr(dataset, "paths")
    loader = DataLoader(
        _Reader(dataset),
        batch_sampler=batches,
        collate_fn=_as_it_is,
        num_workers=0 if in_memory else num_workers,
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

    def __getitems__(self, indices: list[int]) -> Any:
        try:
            return self.dataset.__getitems__(indices)
        except InputError as error:
            return error


def ignore_in_worker(worker: int) -> None:
    """Let a data loading worker ignore signals to a whole group of processes: the main process decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch


def in_order(length: int, batch_size: int) -> list[range]:
    """All items once, in order; the last batch may be short."""
    return in_batches(range(length), batch_size)


def in_batches(items: Items, batch_size: int) -> list[Items]:
    """A row of item numbers cut into batches; the last one may be short."""
    return [items[first : first + batch_size] for first in range(0, len(items), batch_size)]
