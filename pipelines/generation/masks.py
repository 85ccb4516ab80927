"""Masks of pictures to complete: a box, a picture, or a folder with one for each picture.

White pixels of a mask are hidden and drawn anew, black ones are known, as in most programs that fill in pictures.

Shapes: p pictures, H W the tokenizer's image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from codegrid.data.images import Size
from codegrid.data.listing import list_pictures
from codegrid.data.pictures import look_at, read_picture
from codegrid.errors import InputError
from codegrid.pipelines.running.cli import print_once

FORMS = "give a picture, a folder of pictures, or a box as TOP LEFT HEIGHT WIDTH"
WHITE = 128  # from here on a pixel is white
CLEAR = 16  # as near to black or white, a pixel is no grey


def read_masks(given: Sequence[str], size: Size, root: Path, paths: Sequence[Path]) -> torch.Tensor:
    """Return the known pixels, (1, H, W) of all or (p, H, W) of each picture, bool.

    Args:
        given: a picture; a folder of pictures that are called like those to complete; or a box of hidden pixels:
            its upper row, left column, height and width, whole numbers of the tokenizer's pixels, or shares of its
            image, written with a point.
        size: (H, W).
        root: the folder of the pictures to complete.
        paths: these pictures.

    Raises `InputError` if something cannot be read, a mask has another shape than its picture, a picture has no mask,
    or a mask hides nothing or everything.
    """
    if len(given) == 4:
        return _check("`mask` " + " ".join(given), _box(given, size))[None]
    place = Path(given[0])
    if len(given) != 1 or not place.exists():
        raise InputError(f"`mask` {' '.join(given)}: there is no such file or folder: {FORMS}")
    files = _match(place, root, paths) if place.is_dir() else [place] * len(paths)
    soft: list[str] = []

    @lru_cache(1)
    def read(file: Path) -> np.ndarray:
        grey = np.asarray(read_picture(file, 1).image)
        if ((grey >= CLEAR) & (grey <= 255 - CLEAR)).any():
            soft.append(str(file))
        return grey >= WHITE

    @cache  # one mask may be that of many pictures
    def known(file: Path, of_picture: Size | None) -> torch.Tensor:
        return _check(f"`mask` {file}", _known(file, read(file), size, of_picture))

    found = [
        known(file, None if read(file).shape == size else _size_of(path))
        for file, path in zip(files, paths, strict=True)
    ]
    if soft:
        more = f" and {len(soft) - 1:,} more" if len(soft) > 1 else ""
        print_once(f"{soft[0]}{more}: greys of {WHITE} and above count as white, which is drawn anew, others as black")
    return torch.stack(found[:1] if all(one is found[0] for one in found) else found)


def _box(given: Sequence[str], size: Size) -> torch.Tensor:
    """Return known pixels (H, W) bool: all outside of a box."""
    box = []
    for text, side in zip(given, (*size, *size), strict=True):
        try:
            box.append(round(float(text) * side) if "." in text else int(text))
        except (ValueError, OverflowError):
            words = "it is neither a number of pixels nor a share such as 0.25"
            raise InputError(f"`mask` {text}: {words}: {FORMS}") from None
    top, left, height, width = box
    if min(box) < 0 or top + height > size[0] or left + width > size[1]:
        whole = "×".join(map(str, size))
        raise InputError(f"`mask` {' '.join(given)}: this box does not lie in the tokenizer's {whole} pixels")
    known = torch.ones(size, dtype=torch.bool)
    known[top : top + height, left : left + width] = False
    return known


def _match(folder: Path, root: Path, paths: Sequence[Path]) -> list[Path]:
    """Return the mask of each picture: the file of its name, with this or another ending."""
    masks = {path.relative_to(folder): path for path in list_pictures(folder).listing.paths}
    by_stem = {name.with_suffix(""): path for name, path in masks.items()}
    names = [path.relative_to(root) for path in paths]
    found = [masks.get(name) or by_stem.get(name.with_suffix("")) for name in names]
    missing = [str(name) for name, mask in zip(names, found, strict=True) if mask is None]
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise InputError(f"`mask` {folder}: it holds no mask for {missing[0]}{more}: give one of this name for each")
    return [mask for mask in found if mask]


def _size_of(path: Path) -> Size:
    """Return the upright size of a picture; an unreadable one is reported when it is read."""
    look = look_at(path)
    return look[1] if look else (1, 1)


def _known(file: Path, white: np.ndarray, size: Size, of_picture: Size | None) -> torch.Tensor:
    """Return known pixels (H, W) bool: those in which nothing hidden has a part when the picture is resized."""
    if of_picture is None:
        return torch.from_numpy(~white)
    if _is_alike(white.shape, of_picture):
        # resized as its picture will be; with random numbers, as equal ones could cancel: the filter has negative parts
        whole = _as_picture(white).resize((of_picture[1], of_picture[0]), Image.Resampling.BOX)
        noise = np.random.default_rng(0).random(of_picture, np.float32) + 1
        return torch.from_numpy(_fit(Image.fromarray((np.asarray(whole) > 0) * noise), size, Image.Resampling.BICUBIC))
    if _is_alike(white.shape, size):
        return torch.from_numpy(_fit(_as_picture(white), size, Image.Resampling.BOX))
    mask, picture, image = ("×".join(map(str, each)) for each in (white.shape, of_picture, size))
    raise InputError(
        f"`mask` {file} has {mask} pixels: it must have the shape of its picture, {picture}, or of the tokenizer's "
        f"images, {image}"
    )


def _as_picture(white: np.ndarray) -> Image.Image:
    return Image.fromarray(white.astype(np.float32))


def _fit(hidden: Image.Image, size: Size, by: Image.Resampling) -> np.ndarray:
    """Return the pixels (H, W) bool that are 0 when a picture is resized to this size and cropped, as pictures are."""
    return np.asarray(ImageOps.fit(hidden, (size[1], size[0]), by)) == 0


def _is_alike(one: Size, other: Size) -> bool:
    """Return whether two sizes have the same ratio of sides, up to a pixel."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other) * (one != other)


def _check(name: str, known: torch.Tensor) -> torch.Tensor:
    """Raise `InputError` if known pixels (H, W) are all, or none; otherwise return them."""
    if known.all() or not known.any():
        words = "nothing, so that there is nothing to draw" if known.all() else "everything: use `sample` alone"
        raise InputError(f"{name}: it hides {words} (white is drawn anew, black is kept)")
    return known
