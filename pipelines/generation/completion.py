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

from .drawer import Drawer
from .kept_part import Part, check_keeps, default_rows, describe_kept, keep_pixels, top_rows
from .masks import read_masks
from .paste import Paste, make_paste
from .request import Request
from .tokenizers import encode_batches, need_images

SHOWN = 12  # pictures, and completions of each
BATCH_SIZE = 64  # pictures that are encoded at once


class Pictures(NamedTuple):
    """The pictures of a folder: the codes of all, the images of the first ones. Hidden pixels are grey in them."""

    codes: Codes  # (p, *shape) int64, one for each grid, on the CPU
    shown: torch.Tensor  # (at most SHOWN, c, H, W) in [-1, 1]
    files: list[str]  # (p) paths below the folder
    fingerprint: str
    part: Part  # that is kept
    paste: Paste | None = None


def pictures_in(folder: str, tokenizer: Tokenizer, parameter: str) -> FolderImages:
    """Return all pictures below a folder, converted to a tokenizer's size and channels; print what was found.

    Raises `InputError`, naming the parameter, if there is no such folder, or the tokenizer is not one of images.
    """
    need_images(tokenizer, f"`{parameter}` gives")
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"no folder {root}: give `{parameter}` a folder of pictures")
    contents = list_pictures(root)
    paths = contents.listing.paths
    found = Found(len(paths), name=str(root), left_out=contents.left_out)
    print_once(str(found))
    height, width = tokenizer.signal.size
    return FolderImages(root, paths, None, [], (height, width), tokenizer.signal.channels, found)


def read_pictures(
    folder: str, drawer: Drawer, keep_rows: int | None = None, mask: Sequence[str] = (), paste: bool = False
) -> Pictures:
    """Read all pictures below a folder, converted to the tokenizer's size and channels.

    Args:
        folder: holds them.
        drawer: its tokenizer encodes them, and its priors must be able to keep the part.
        keep_rows: rows of codes to keep. None: as many as by default.
        mask: what is hidden, in place of rows to keep, as for `read_masks`; empty for nothing.
        paste: put the known pixels into the completions.

    Raises `InputError` if something cannot be read, or nothing would be kept.
    """
    images, tokenizer = pictures_in(folder, drawer.tokenizer, "complete"), drawer.tokenizer
    if mask:
        height, width = tokenizer.signal.size
        known = read_masks(mask, (height, width), images.root, images.paths)
        part = keep_pixels(tokenizer, known, "mask")
        print_once(f"kept: {describe_kept(tokenizer.layout, part.masks)}")
    else:
        part = Part(top_rows(tokenizer.layout, keep_rows or default_rows(tokenizer.layout), "keep_rows"))
    for prior in drawer.priors:
        check_keeps(prior, part.masks)  # now, before all pictures are read
    numbers = in_order(len(images), BATCH_SIZE)
    pairs = zip(numbers, load_batches(images, numbers), strict=True)
    codes = encode_batches(tokenizer, (part.rows(rows).of_known(to_float(batch.images)) for rows, batch in pairs))
    some = range(min(len(images), SHOWN))
    shown = part.rows(some).hide(to_float(images.batch(some).images))
    given = (*codes, shown, *part.masks, *(() if part.known is None else (part.known,)))
    parts = [[list(each.shape), sha256(each.contiguous().numpy())] for each in given]
    files = images.files or []
    pasted = None
    if paste and part.known is not None:
        pasted = make_paste(lambda numbers: to_float(images.batch(numbers).images), part.known, tokenizer.layout)
    return Pictures(codes, shown, files, digest_of([parts, files]), part, pasted)


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
    codes, masks = (tuple(part.to(tokenizer.device) for part in parts) for parts in known)
    kept = tokenizer.preview(codes, masks)
    if request.roughly:  # coarser codes that are drawn anew belong to what the kept ones show
        kept = torch.where(kept == 0, 0, tokenizer.decode(codes))
    completions = images.unflatten(0, (count, -1))[:, :SHOWN]
    columns = completions.shape[1]
    names, heading = [drawable(file) for file in pictures.files[:count]], "completions"
    numbers, classes = request.headings(classes)
    if numbers is not None:
        asked = numbers[:: request.of_each][:count].tolist()
        of = ["" if label == NO_LABEL else f", as {heading_of(label, classes)}" for label in asked]
        if len(set(asked)) == 1:
            heading += of[0]
        else:
            names = [name + its for name, its in zip(names, of, strict=True)]
    blocks = [
        Block("given", pictures.shown[:count], 1),
        Block("kept, roughly" if request.roughly else "kept", kept.cpu(), 1),
        Block(heading, completions.flatten(0, 1), columns),
    ]
    left_out = [f"{columns} of {request.of_each:,} completions"] * (columns < request.of_each)
    left_out += [f"{count} of {len(pictures.files):,} pictures"] * (count < len(pictures.files))
    draw_blocks([blocks], names, ", ".join(left_out)).save(path, "PNG")
