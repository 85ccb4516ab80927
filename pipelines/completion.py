"""Pictures to complete: read from a folder, encoded, and shown beside what became of them.

Shapes: n pictures, k completions of each, c channels, H W image, h w code grid.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from data.folder import FolderImages, list_pictures
from data.images import to_float
from stage1_vqvae import VQVAE
from storage.errors import InputError

from .batches import in_order, load_batches
from .pictures import save_grid

ON_A_PAGE = 12  # pictures


class Pictures(NamedTuple):
    """The pictures of a folder, as codes; as images only those that are shown."""

    codes: torch.Tensor  # (n, h, w) int64
    shown: torch.Tensor  # (at most 12, c, H, W) in [-1, 1]
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
    shown = images.__getitems__(range(min(len(images), ON_A_PAGE))).images
    return Pictures(torch.cat(codes), to_float(shown), images.identity())


def save_completions(
    path: Path, tokenizer: VQVAE, pictures: Pictures, num_known: int, completions: torch.Tensor
) -> None:
    """A page with a row for each picture: the picture, what was kept of it, and completions (n·k, c, H, W)."""
    keep_rows = num_known // pictures.codes.shape[2]
    device = next(tokenizer.parameters()).device
    kept = tokenizer.decode(pictures.codes[: len(pictures.shown)].to(device)).clamp(-1, 1).cpu()
    kept[:, :, keep_rows * tokenizer.downsampling :] = 0  # as grey as the page
    of_each = completions.unflatten(0, (len(pictures.shown), -1))
    rows = torch.cat([pictures.shown[:, None], kept[:, None], of_each], dim=1)
    save_grid(path, rows.flatten(0, 1), rows.shape[1])
