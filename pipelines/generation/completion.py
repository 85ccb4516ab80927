"""Pictures to complete: read from a folder, encoded, and shown beside what became of them.

Shapes: p pictures, m completions, c channels, H W image, *shape the sites of each grid.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from codegrid.codes import Codes, Known
from codegrid.data.folder import FolderImages
from codegrid.data.found import Found
from codegrid.data.images import to_float
from codegrid.data.listing import list_pictures
from codegrid.data.loading import in_order, load_batches
from codegrid.errors import InputError
from codegrid.pipelines.drawing.sheets import save_sheet
from codegrid.pipelines.running.cli import print_once
from codegrid.protocols import Tokenizer
from codegrid.tensors import digest_of, sha256

SHOWN = 12  # pictures, and completions of each
BATCH_SIZE = 64  # pictures that are encoded at once


class Pictures(NamedTuple):
    """The pictures of a folder, as codes; as images only those that are shown."""

    codes: Codes  # (p, *shape) int64, one for each grid, on the CPU
    shown: torch.Tensor  # (at most SHOWN, c, H, W) in [-1, 1]
    files: list[str]  # (p) where each is below the folder
    fingerprint: str


def read_pictures(folder: str, tokenizer: Tokenizer) -> Pictures:
    """Read all pictures below a folder, brought to the tokenizer's size and channels."""
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"no folder {root}: give `complete` a folder of pictures")
    height, width = tokenizer.signal.size
    contents = list_pictures(root)
    paths = contents.listing.paths
    found = Found(len(paths), name=str(root), left_out=contents.left_out)
    images = FolderImages(root, paths, None, [], (height, width), tokenizer.signal.channels, found)
    print_once(str(found))
    batches = [
        tokenizer.encode(to_float(batch.images).to(tokenizer.device))
        for batch in load_batches(images, in_order(len(images), BATCH_SIZE))
    ]
    codes = tuple(torch.cat(grids).cpu() for grids in zip(*batches, strict=True))
    shown = images.batch(range(min(len(images), SHOWN))).images
    parts = [[list(part.shape), sha256(part.contiguous().numpy())] for part in (*codes, shown)]
    files = images.files or []
    return Pictures(codes, to_float(shown), files, digest_of([parts, files]))


def save_completions(
    path: Path, tokenizer: Tokenizer, known: Known, of_each: int, pictures: Pictures, images: torch.Tensor
) -> None:
    """Save a row for each of the first pictures: itself, what was kept of it, and its completions.

    Args:
        known: what was kept of all pictures.
        of_each: completions of each picture.
        images: the first completions (m, c, H, W) in [-1, 1], all of some pictures, or some of the first one.
    """
    count = max(1, len(images) // of_each)
    known = known.rows(slice(count))
    kept = tokenizer.preview(*(tuple(part.to(tokenizer.device) for part in parts) for parts in known))
    completions = images.unflatten(0, (count, -1))[:, :SHOWN]
    rows = torch.cat([pictures.shown[:count, None], kept[:, None].clamp(-1, 1).cpu(), completions], dim=1)
    save_sheet(path, rows.flatten(0, 1), rows.shape[1])
