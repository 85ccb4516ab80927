"""Pictures to complete: read from a folder, encoded, and shown beside what became of them.

Shapes: n pictures, k completions of each, c channels, H W image, h w code grid.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from codegrid.data.folder import FolderImages, list_pictures
from codegrid.data.images import to_float
from codegrid.data.loading import in_order, load_batches
from codegrid.errors import InputError
from codegrid.pipelines.drawing.pictures import save_grid
from codegrid.stage1_vqvae import VQVAE
from codegrid.tensors import digest_of, sha256

SHOWN = 12  # pictures, and completions of each


class Pictures(NamedTuple):
    """The pictures of a folder, as codes; as images only those that are shown."""

    codes: torch.Tensor  # (n, h, w) int64
    shown: torch.Tensor  # (at most SHOWN, c, H, W) in [-1, 1]
    identity: str  # a digest


def read_pictures(folder: str, tokenizer: VQVAE, device: torch.device) -> Pictures:
    """All pictures below a folder, brought to the tokenizer's size and channels."""
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"no folder {root}: give --complete a folder of pictures")
    images = FolderImages(root, *list_pictures(root), tokenizer.image_size, tokenizer.in_channels)
    codes = []
    for batch in load_batches(images, in_order(len(images), 64)):
        codes.append(tokenizer.encode(to_float(batch.images).to(device)).cpu())
    shown = images.__getitems__(range(min(len(images), SHOWN))).images
    together = torch.cat(codes)
    identity = digest_of([list(together.shape), sha256(together.numpy()), sha256(shown.contiguous().numpy())])
    return Pictures(together, to_float(shown), identity)


def save_completions(
    path: Path, tokenizer: VQVAE, pictures: Pictures, count: int, num_known: int, completions: torch.Tensor
) -> None:
    """A row for each of the first `count` pictures: itself, what was kept of it, and completions (n·k, c, H, W)."""
    keep_rows = num_known // pictures.codes.shape[2]
    device = next(tokenizer.parameters()).device
    kept = tokenizer.decode(pictures.codes[:count].to(device)).clamp(-1, 1).cpu()
    kept[:, :, keep_rows * tokenizer.downsampling :] = 0  # as grey as the page
    of_each = completions.unflatten(0, (count, -1))[:, :SHOWN]
    rows = torch.cat([pictures.shown[:count, None], kept[:, None], of_each], dim=1)
    save_grid(path, rows.flatten(0, 1), rows.shape[1])
