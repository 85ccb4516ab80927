"""Emoji with their names: pictures of the npm package `emoji-datasource-google`, texts of `emojibase-data`.

The held-out pictures are combinations of a role and a skin tone: neither the role nor the tone is new, but the two of
them together are. Whoever draws them has understood the words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from codegrid.errors import InputError
from codegrid.files import read_plain
from codegrid.strict_json import parse_json

from .captions import Texts
from .folder import FolderImages
from .found import Found, count_classes
from .images import Size
from .listing import TEST, TRAIN

PACKAGES = "emoji-datasource-google@16.0.0 emojibase-data@17.0.0"
MAX_BYTES = 2**26  # of a table
PICTURES = 64  # pixels of a side
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
SHARE, STRIDE = 10, 3  # a tenth of the roles of each tone, and another tenth for the next one
PLAIN_FILE = re.compile(r"[0-9a-f-]{1,100}\.png")
VARIANT = re.compile("-?FE0F")  # asks for a picture in place of a letter; the packages differ in it


class Emoji(NamedTuple):
    """An emoji."""

    file: str
    category: str
    captions: Texts  # the label, the short name, and the label with two tags each
    held_out: bool


def load_emoji(root: Path | None, split: str, size: Size | None, channels: int | None) -> FolderImages:
    """Find the emoji below `root`, where both packages are; their classes are the categories.

    Raises `InputError` if a package is missing or damaged.
    """
    folder, pictures, names = _find_packages(root)
    every = list(_read(folder, names))
    chosen = [one for one in every if split == "all" or one.held_out == (split == TEST)]
    classes = sorted({one.category for one in every})
    labels = np.array([classes.index(one.category) for one in chosen], dtype=np.int64)
    others = {} if split == "all" else {TRAIN if split == TEST else TEST: len(every) - len(chosen)}
    notes = ("test is combinations of role and skin tone that train lacks",) * (split != "all")
    found = Found(len(chosen), count_classes(labels, classes), "emoji", split, others, {}, notes)
    paths = [pictures / one.file for one in chosen]
    images = FolderImages(pictures, paths, labels, classes, size or (PICTURES, PICTURES), channels or 3, found)
    images.captions = [one.captions for one in chosen]
    return images


def _find_packages(root: Path | None) -> tuple[Path, Path, Path]:
    """Return the folder of the pictures' package, that of its pictures, and the table of names."""
    places = [root] if root else []
    if root and root.is_dir():
        inside = sorted(path for path in root.iterdir() if path.is_dir())
        places += [each for path in inside for each in (path, path / "package", *sorted(path.glob("emoji*")))]
    tables = [place / "en" / "data.json" for place in places]
    folders = [place for place in places if (place / "emoji.json").is_file()]
    pictures = [path for place in folders for path in sorted(place.glob(f"img/*/{PICTURES}"))]
    names = [table for table in tables if table.is_file()]
    if not pictures or not names:
        lacking = "emoji-datasource-google" if not pictures else "emojibase-data"
        raise InputError(
            f"`data_root` {root}: it does not hold {lacking}: run `npm pack {PACKAGES}` and unpack each of the two "
            "archives into a folder of its own in it"
        )
    return pictures[0].parents[2], pictures[0], names[0]


def _read(folder: Path, names: Path) -> Iterator[Emoji]:
    """Yield all emoji, each followed by its variants of other skin tones."""
    known = {}
    for entry in _entries(names):
        known[_key(entry.get("hexcode"))] = entry
        for variant in entry.get("skins") or ():
            known[_key(variant.get("hexcode"))] = {"tags": entry.get("tags"), **variant}
    roles = 0
    table = folder / "emoji.json"
    for entry in sorted(_entries(table), key=lambda entry: entry.get("sort_order", 0)):
        variants = entry.get("skin_variations") or {}
        yield _emoji(table, entry, entry, known, False)
        for tone, variant in enumerate(variants.values()):
            yield _emoji(table, entry, variant, known, (roles + STRIDE * tone) % SHARE == 0)
        roles += bool(variants)


def _emoji(table: Path, entry: dict[str, Any], variant: dict[str, Any], known: dict[str, Any], held_out: bool) -> Emoji:
    """Return an entry of the table of pictures, or a variant of it, with its texts."""
    words = known.get(_key(variant.get("unified")), {})
    name, category = entry.get("short_name"), entry.get("category")
    label, tags, file = words.get("label", name), words.get("tags") or [], variant.get("image")
    texts = (name, category, label, file, *tags)
    if not all(isinstance(text, str) for text in texts) or not PLAIN_FILE.fullmatch(str(file)):
        raise InputError(f"{table} is damaged (an emoji has no name, category or picture): unpack it again")
    tones = words.get("tone", [])
    toned = [f"{TONES[tone - 1]} skin tone" for tone in (tones if isinstance(tones, list) else [tones])]
    short_name = ": ".join([re.sub("[_-]+", " ", str(name)).strip(), *[", ".join(dict.fromkeys(toned))] * bool(toned)])
    with_tags = [f"{label}, {', '.join(tags[first : first + 2])}" for first in range(0, min(len(tags), 6), 2)]
    return Emoji(str(file), str(category), tuple(dict.fromkeys([label, short_name, *with_tags])), held_out)


def _entries(table: Path) -> Sequence[dict[str, Any]]:
    try:
        entries = parse_json(read_plain(table, MAX_BYTES))
    except ValueError as error:
        raise InputError(f"{table} is not JSON: unpack it again") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{table} is not a list of emoji: unpack it again")
    return entries


def _key(code: object) -> str:
    return VARIANT.sub("", str(code).upper())
