"""Images → codes, shared by several processes.

Shapes: n images, h w code grid.
"""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from data.images import to_float
from stage1_vqvae import VQVAE

from .batches import in_batches, load_batches


def encode_images(
    tokenizer: VQVAE, images: Any, numbers: range, batch_size: int, num_workers: int, accelerator: Accelerator
) -> torch.Tensor:
    """The codes (n, h, w) of the images with these numbers, in order, on every process."""
    share = np.array_split(np.asarray(numbers), accelerator.num_processes)[accelerator.process_index].tolist()
    ours = [
        tokenizer.encode(to_float(batch.images.to(accelerator.device))).cpu().numpy()
        for batch in load_batches(images, in_batches(share, batch_size), num_workers)
    ]
    return torch.from_numpy(np.concatenate(gather_object(ours)))
