"""Pictures to complete: read from a folder, encoded, and shown beside their completions.

Shapes: p pictures, m completions, c channels, H W image, *shape the sites of each grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from codegrid.codes import NO_LABEL, Codes
from codegrid.data.folder import FolderImages
from codegrid.data.found import Found
from codegrid.data.images import to_float
from codegrid.data.listing import list_pictures
from codegrid.data.loading import in_order, load_batches
from codegrid.errors import InputError
from codegrid.pipelines.drawing.blocks import Block, draw_blocks, heading_of
from codegrid.pipelines.drawing.letters import drawable
from codegrid.pipelines.running.cli import print_once
from codegrid.protocols import Tokenizer
from codegrid.tensors import digest_of, sha256

from .request import Request

SHOWN = 12  # pictures, and completions of each
BATCH_SIZE = 64  # pictures that are encoded at once


class Pictures(NamedTuple):
    """The pictures of a folder: the codes of all, the images of the first ones."""

    codes: Codes  # (p, *shape) int64, one for each grid, on the CPU
    shown: torch.Tensor  # (at most SHOWN, c, H, W) in [-1, 1]
    files: list[str]  # (p) paths below the folder
    fingerprint: str


def read_pictures(folder: str, tokenizer: Tokenizer) -> Pictures:
    """Read all pictures below a folder, converted to the tokenizer's size and channels."""
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
    path: Path, tokenizer: Tokenizer, request: Request, pictures: Pictures, images: torch.Tensor, classes: Sequence[str]
) -> None:
    """Save a sheet with a row for each of the first pictures: the picture, its kept part, and its completions.

    Args:
        path: the PNG file to write.
        tokenizer: draws the kept part.
        request: the request for the completions.
        pictures: all pictures that are completed.
        images: the first completions (m, c, H, W) in [-1, 1]: all of the first pictures, or some of the first one.
        classes: names of the classes.
    """
    assert request.known is not None
    count = max(1, len(images) // request.of_each)
    known = request.known.rows(slice(count))
    kept = tokenizer.preview(*(tuple(part.to(tokenizer.device) for part in parts) for parts in known))
    completions = images.unflatten(0, (count, -1))[:, :SHOWN]
    columns = completions.shape[1]
    names, heading = [drawable(file) for file in pictures.files[:count]], "completions"
    if request.labels is not None:
        asked = request.labels[:: request.of_each][:count].tolist()
        of = ["" if label == NO_LABEL else f", as {heading_of(label, classes)}" for label in asked]
        if len(set(asked)) == 1:
            heading += of[0]
        else:
            names = [name + its for name, its in zip(names, of, strict=True)]
    blocks = [
        Block("given", pictures.shown[:count], 1),
        Block("kept", kept.cpu(), 1),
        Block(heading, completions.flatten(0, 1), columns),
    ]
    left_out = [f"{columns} of {request.of_each:,} completions"] * (columns < request.of_each)
    left_out += [f"{count} of {len(pictures.files):,} pictures"] * (count < len(pictures.files))
    draw_blocks([blocks], names, ", ".join(left_out)).save(path, "PNG")
