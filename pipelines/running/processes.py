"""Several processes that work as one: common decisions, sharing out work, and ending together.

Shapes: b batch; ... the shape of an item.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from codegrid.codes import Codes
from codegrid.data.loading import in_batches
from codegrid.errors import InputError

Decision = TypeVar("Decision")
Item = TypeVar("Item")


def broadcast_from_main(accelerator: Accelerator, decide: Callable[[], Decision]) -> Decision:
    """Return on every process what `decide` returns on the main one; an `InputError` or OSError is raised on all.

    For decisions that depend on the disk: processes that look at different times see different files.
    """
    outcome: list = [None]
    if accelerator.is_main_process:
        try:
            outcome = [decide()]
        except (InputError, OSError) as error:  # otherwise the others would wait forever
            outcome = [error]
    broadcast_object_list(outcome)
    if isinstance(outcome[0], InputError | OSError):
        raise outcome[0]
    return outcome[0]


def check_same_step(accelerator: Accelerator, step: int) -> None:
    """Raise `InputError` if the processes do not all start at the same step."""
    steps = set(accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist())
    if len(steps) > 1:
        raise InputError(
            f"the processes see training states of different steps ({', '.join(map(str, sorted(steps)))}): "
            "`output` must be a folder that all machines share"
        )


def describe_machine(device: torch.device) -> str:
    """Return a text of what the last digits of a result depend on besides the settings: threads, device, version."""
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = torch.get_num_threads()
    counts = [f"{threads} thread{'s' * (threads > 1)}"] + [f"{processes} processes"] * (processes > 1)
    return f"{' in each of '.join(counts)} on {name}, torch {torch.__version__}"


def shut_down(accelerator: Accelerator) -> None:
    """End the run of all processes together: if one leaves while another still talks to it, that one can abort."""
    accelerator.wait_for_everyone()
    accelerator.end_training()


def map_across_ranks(
    make: Callable[[range], Codes],
    numbers: range,
    batch_size: int,
    accelerator: Accelerator,
    progress: Callable[[int], object],
) -> Iterator[Codes]:
    """Yield what `make` returns for all numbers, in order, batch by batch, on the CPU of every process.

    Args:
        make: some numbers → tensors (b, ...), one row for each number; called for this process's share of each batch.
        batch_size: of one process.
        progress: called with the number of rows made since the last call.
    """
    for batch, share in deal(numbers, batch_size, accelerator):
        yield tuple(_gather(part, len(batch), accelerator) for part in make(share))
        progress(len(batch))


def write_together(write: Callable[[Iterator[Item]], object], items: Iterator[Item], accelerator: Accelerator) -> None:
    """Write, from the main process, items that all processes make together."""
    if accelerator.is_main_process:
        write(items)
    else:
        deque(items, maxlen=0)  # take part in making them


def deal(numbers: range, batch_size: int, accelerator: Accelerator) -> Iterator[tuple[range, range]]:
    """Yield each batch of all processes, and this process's share; a process without a share repeats the first row.

    If the shares cannot be even, the last processes get less.
    """
    count = accelerator.num_processes
    for batch in in_batches(numbers, batch_size * count):
        longest = -(-len(batch) // count)
        first = accelerator.process_index * longest
        yield batch, batch[first : first + longest] or batch[:1]


def _gather(made: torch.Tensor, count: int, accelerator: Accelerator) -> torch.Tensor:
    """Return the (count, ...) rows of all processes."""
    longest = -(-count // accelerator.num_processes)
    filled = made.new_zeros(longest, *made.shape[1:])  # only tensors of equal size can be gathered
    filled[: len(made)] = made
    return accelerator.gather(filled)[:count].cpu()
