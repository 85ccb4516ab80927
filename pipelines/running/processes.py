"""Work on a row of numbered items, shared by several processes that each see the whole result.

Shapes: b batch; ... whatever an item is.
"""

from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator

from codegrid.data.loading import in_batches


def longest_share(numbers: range, count: int) -> int:
    """The largest part of a range that one of `count` processes gets."""
    return -(-len(numbers) // count)


def share_of(numbers: range, process: int, count: int) -> range:
    """The part of a range that one of `count` processes gets; where it cannot be even, the last get less."""
    longest = longest_share(numbers, count)
    return numbers[process * longest : (process + 1) * longest]


def make_together(
    make: Callable[[range], torch.Tensor],
    numbers: range,
    batch_size: int,
    accelerator: Accelerator,
    progress: Callable[[int], object] = lambda count: None,
) -> Iterator[torch.Tensor]:
    """What `make` gives for all numbers, in order, batch by batch, on the CPU of every process.

    Args:
        make: some numbers → (b, ...), one for each; called for this process's share of each batch.
        batch_size: of one process.
        progress: is told how many more are made.
    """
    count = accelerator.num_processes
    for batch in in_batches(numbers, batch_size * count):
        # processes can only gather what has one size: whoever has less fills up, whoever has nothing makes the first
        made = make(share_of(batch, accelerator.process_index, count) or batch[:1])
        filled = made.new_zeros(longest_share(batch, count), *made.shape[1:])
        filled[: len(made)] = made
        yield accelerator.gather(filled)[: len(batch)].cpu()
        progress(len(batch))
