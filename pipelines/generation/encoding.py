"""Images → codes, shared by several processes.

Shapes: m images of a range, b batch, c channels, H W image, h w code grid.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator

from codegrid.data.codes import CodeShard
from codegrid.data.images import to_float
from codegrid.data.loading import in_batches, load_batches
from codegrid.pipelines.running.processes import longest_share, share_of
from codegrid.stage1_vqvae import VQVAE
from codegrid.stage1_vqvae.quantizers.nearest import Nearest


def encode_ranges(
    tokenizer: VQVAE,
    images: Any,
    ranges: list[range],
    batch_size: int,
    num_workers: int,
    accelerator: Accelerator,
    progress: Callable[[int], object] = lambda count: None,
) -> Iterator[CodeShard]:
    """The codes of each range of images in turn, on every process; each encodes its share of every range.

    One data loader reads the shares of all ranges: its workers start once, and read on while codes are written.

    Args:
        progress: is told how many more images all processes together have encoded.
    """
    count = accelerator.num_processes
    shares = [share_of(numbers, accelerator.process_index, count) for numbers in ranges]
    loaded = load_batches(images, [batch for share in shares for batch in in_batches(share, batch_size)], num_workers)
    for numbers, share in zip(ranges, shares, strict=True):
        # as long as the longest share, for processes can only gather what has one size
        codes = torch.zeros(
            longest_share(numbers, count), *tokenizer.grid_shape, dtype=torch.int64, device=accelerator.device
        )
        ties = codes.new_zeros(1)
        for rows in in_batches(range(len(share)), batch_size):
            found = _encode(tokenizer, next(loaded).images, accelerator.device)
            codes[rows.start : rows.stop] = found.codes
            ties += found.tied.sum()
            progress(min(len(rows) * count, len(numbers) - rows.start * count))
        codes, ties = accelerator.gather((codes, ties))
        labels = None if images.labels is None else images.labels[numbers.start : numbers.stop]
        yield CodeShard(codes[: len(numbers)].cpu(), labels, int(ties.sum()))


@torch.inference_mode()
def _encode(tokenizer: VQVAE, images: torch.Tensor, device: torch.device) -> Nearest:
    """(b, c, H, W) uint8 → codes and ties (b, h, w), in float32."""
    as_floats = to_float(images.to(device)).contiguous(memory_format=torch.channels_last)
    return tokenizer.encode_marking_ties(as_floats)
