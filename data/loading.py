"""The items that each training step sees, which follow from (seed, step) alone, and how they are read and cut.

Shapes: n items of the data set.
"""

import mmap
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.data import DataLoader, Sampler, get_worker_info

from codegrid.errors import InputError
from codegrid.noise import rng

Items = TypeVar("Items")
Indices = Sequence[int] | np.ndarray | torch.Tensor

PATIENCE = 600  # seconds that workers may take for a batch
PREFETCHED = 2  # batches of each worker
SHARED_MEMORY = "/dev/shm"


class StepSampler(Sampler[list[int]]):
    """This process's share of the item numbers of each step from `start` to `stop`.

    The epochs, each a permutation that follows from (seed, epoch), form one endless sequence, and step t takes its
    items t·batch_size ... (t+1)·batch_size. So a step is the same however often training was resumed, and however
    many processes share it.

    Args:
        order: (seed, epoch) → the order (n,) of an epoch, for a data set that cannot be read in any order.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        rank: int = 0,
        num_processes: int = 1,
        order: Callable[[int, int], np.ndarray] | None = None,
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.order = order or self._permute
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
                    epoch, order = needed, self.order(self.seed, needed)
                chosen[epochs == needed] = order[places[epochs == needed]]
            yield chosen[self.share].tolist()

    def _permute(self, seed: int, epoch: int) -> np.ndarray:
        return rng(seed, "epoch", epoch).permutation(self.length)


def shuffle_within(shard_of: np.ndarray, buffer: int, seed: int, epoch: int) -> np.ndarray:
    """Return an order (n,) of items that are in shards, for readers that go from shard to shard.

    The shards come in an order that follows from (seed, epoch), each with its items in their own order. This sequence
    is cut into pieces of `buffer` items, and each piece is shuffled in a way that follows from (seed, epoch, piece).

    Args:
        shard_of: (n,) the number of each item's shard, ascending.
    """
    shards, firsts = np.unique(shard_of, return_index=True)
    items = np.split(np.arange(len(shard_of)), firsts[1:])
    row = np.concatenate([items[i] for i in rng(seed, "shards", epoch).permutation(len(shards))])
    for piece, first in enumerate(range(0, len(row), buffer)):
        rng(seed, "shuffle", epoch, "piece", piece).shuffle(row[first : first + buffer])
    return row


def check_shares(batch_size: int, num_processes: int, accumulate: int) -> None:
    """Raise `InputError` if a batch cannot be cut into equal pieces."""
    if batch_size % (num_processes * accumulate):
        among = [f"{num_processes} processes"] * (num_processes > 1) + [f"{accumulate} pieces"] * (accumulate > 1)
        raise InputError(f"`batch_size` {batch_size} cannot be shared equally by {' of '.join(among)}: use a multiple")


def pieces_of(batch: Items, count: int) -> list[Items]:
    """Cut a batch into `count` pieces of the same structure.

    Tensors and lists of texts are cut along their first axis. Tuples, named tuples, dicts and lists of tensors are
    cut item by item, however nested; anything else is in every piece.
    """
    if count == 1:
        return [batch]

    def cut(part: Any, number: int) -> Any:
        rows = -(-len(part) // count) if isinstance(part, torch.Tensor | list) else 0
        return part[number * rows : (number + 1) * rows] if rows else part

    def is_texts(part: Any) -> bool:
        return isinstance(part, list) and not (part and isinstance(part[0], torch.Tensor))

    return [tree_map(partial(cut, number=number), batch, is_leaf=is_texts) for number in range(count)]


def load_batches(dataset: Any, batches: Sampler[list[int]] | Sequence[Sequence[int]], num_workers: int = 0) -> Iterator:
    """Yield a data set's batches, given the item numbers of each.

    Pictures that are decoded on demand (`dataset.on_demand`) are read by workers. Their errors are raised here, and
    RuntimeError if a worker is killed, or takes longer than `PATIENCE`.
    """
    workers = num_workers if getattr(dataset, "on_demand", False) else 0
    if hasattr(dataset, "look_ahead"):
        batches = dataset.look_ahead(batches)
    loader: DataLoader[Any] = DataLoader(
        _Reader(dataset),  # type: ignore[arg-type]
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=PREFETCHED if workers else None,
        timeout=PATIENCE if workers else 0,
        worker_init_fn=ignore_in_worker,
    )
    for batch in loader:
        if isinstance(batch, InputError | OSError):
            raise batch
        yield tree_map_only(np.ndarray, torch.from_numpy, batch.content) if isinstance(batch, _Piped) else batch


class _Piped(NamedTuple):
    """A batch that goes through a pipe: its tensors became arrays."""

    content: Any


class _Reader:
    """Returns an InputError or OSError as a value: raised in a worker, it would come back wrapped in a traceback.

    Tensors come from a worker in shared memory. If that has no room for all workers (a container has 64 MB of it),
    they would be lost and waited for forever; they then go through a pipe, which is slower.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        try:
            batch = self.dataset.batch(indices)
        except (InputError, OSError) as error:
            return error
        worker = get_worker_info()
        tensors = (part for part in tree_leaves(batch) if isinstance(part, torch.Tensor))
        size = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
        if worker is None or size * PREFETCHED * worker.num_workers < _shared_room():
            return batch
        return _Piped(tree_map_only(torch.Tensor, torch.Tensor.numpy, batch))


def forked_workers(at_most: int) -> int:
    """Return how many workers can be forked to share this process's memory: none in threads and daemons."""
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    is_main = threading.current_thread() is threading.main_thread()
    if method != "fork" or not is_main or multiprocessing.current_process().daemon:
        return 0
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(at_most, len(cores))


def shared_memory(size: int) -> torch.Tensor:
    """Return (size,) uint8 that forked processes share with this one; `SHARED_MEMORY` does not limit it."""
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)


def _shared_room() -> float:
    """Return the free bytes of memory that processes can share; infinite if it has no limit of its own."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except (AttributeError, OSError):
        return float("inf")
    return found.f_bavail * found.f_frsize


def ignore_in_worker(worker: int) -> None:
    """Let a data loading worker ignore signals to a whole group of processes: the main process decides.

    A second SIGTERM, from the main process, ends it, even if it is stuck.
    """

    def once(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, once)


def _as_it_is(batch: Any) -> Any:
    return batch


def item_numbers(indices: Indices, length: int | None = None) -> np.ndarray:
    """Return item numbers as an array (b,) int64.

    Args:
        indices: a list, an array or a tensor of whole numbers.
        length: of the data set, if known: then `indices` may also be a mask (length,), and may count from the end.

    Raises TypeError if they are something else, and IndexError if the data set is too short.
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
    """Return batches of all item numbers in order, each once; the last batch may be short."""
    return in_batches(range(length), batch_size)


def in_batches(items: Items, batch_size: int) -> list[Items]:
    """Cut a sequence of item numbers into batches; the last one may be short."""
    return [items[first : first + batch_size] for first in range(0, len(items), batch_size)]  # type: ignore
