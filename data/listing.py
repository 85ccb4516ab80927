"""The pictures in a folder: its parts and classes, found by one rule, and everything that is left out.

- A folder is a part if its name is, in any spelling, a word for training, test or validation, perhaps with one for
  images or data: `Train`, `test_set`, `val2017`. If there are both a part to train on and one to test on, side by side,
  they are the parts of the data, and everything beside them is left out; a test part is preferred to a validation part.
  A lone `train` is all the data. Such a name among other folders of pictures could also be a class, and is refused.
- Every other folder with pictures is a class, with everything below it. Without class folders there are no labels.
- Hidden files and folders, and those that systems create, are left out. A class or part may be a link; links to folders
  further down, or back into the data, are left out.
- Everything is in natural order: 2 before 10.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import time_ns
from typing import NamedTuple

import numpy as np

from codegrid.errors import InputError, reason_of
from codegrid.file_names import natural_key, printable

from .pictures import endings

TRAIN, TEST, VALIDATION = "train", "test", "validation"
WORDS = r"(?:images?|imgs?|pictures?|data|set|split|part)*"
PART = re.compile(
    rf"{WORDS}(?:(?P<train>train(?:ing)?)|(?P<test>test(?:ing)?)|(?P<validation>val(?:id(?:ation)?)?|dev|eval(?:uation)?))"
    rf"{WORDS}(?:(?:19|20)\d\d)?"
)
# files and folders that file managers, archives and disks create, in lower case
LITTER = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
          "desktop.ini"}  # fmt: skip
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".txt")  # that may hold labels
SETTLED = 2 * 10**9  # ns since the last change of a folder
TABLES_READ, TABLE_BYTES = 10, 2**16  # how many of them are read, and how many bytes
BETWEEN = re.compile(r"[\s,;:\"'\[\]{}()/\\|]+")  # separates the names in a table


class Listing(NamedTuple):
    """Pictures, with or without classes."""

    paths: list[Path]
    labels: np.ndarray | None  # (n,) int64
    classes: list[str]  # printable


class Contents(NamedTuple):
    """Parts and classes of a folder."""

    listing: Listing  # of all, those to train on first
    num_train: int | None  # pictures to train on; None if the folder has no parts
    left_out: dict[str, Counter[str]]  # by reason
    notes: tuple[str, ...]


# the folder that was listed last: its path, when each folder in it was last changed (ns), and its contents
_last: tuple[tuple[str, str], dict[Path, int], Contents] | None = None


def part_of(name: str) -> str | None:
    """Return which part a folder's name stands for; None if it is not the name of a part."""
    found = PART.fullmatch(re.sub(r"[\W_]+", "", name.lower()))
    return found and found.lastgroup


def list_folder(root: Path) -> Contents:
    """Find the parts, classes and pictures below a folder.

    The last folder is remembered until something in it changes, so that its two parts need only one pass.

    Raises `InputError` if there are none, a folder cannot be read, or the folder is ambiguous.
    """
    global _last
    place = os.path.abspath(root), str(root)
    if _last and _last[0] == place and all(_time_of(folder) == time for folder, time in _last[1].items()):
        return _last[2]
    begun, walk = time_ns(), _Walk(root)
    contents = walk.contents()
    # a folder that has just changed could change again, and keep its time
    settled = max(walk.times.values()) < begun - SETTLED
    _last = (place, walk.times, contents) if settled else None
    return contents


def list_pictures(root: Path) -> Contents:
    """Find all pictures below a folder, whatever its folders are called, without labels or parts.

    Raises `InputError` if there are none, or a folder cannot be read.
    """
    walk = _Walk(root)
    pictures = list(walk.below(root, may_hold_parts=True))
    if not pictures:
        raise walk.nothing_in(root)
    return Contents(Listing(pictures, None, []), None, walk.left_out, ())


class _Walk:
    """A walk through a folder that records what it leaves out."""

    def __init__(self, root: Path) -> None:
        self.root, self.real = root, os.path.realpath(root)
        self.endings = endings()
        self.left_out: dict[str, Counter[str]] = {}
        self.tables: list[Path] = []
        self.times: dict[Path, int] = {}

    def contents(self) -> Contents:
        """Find out whether the folders are parts or classes, and list their pictures."""
        loose, folders = self.entries(self.root)
        by_part: dict[str | None, list[Path]] = {}
        for folder in folders:
            by_part.setdefault(part_of(folder.name), []).append(folder)
        tests = by_part.get(TEST) or by_part.get(VALIDATION) or []
        num_train = None
        if TRAIN in by_part and tests:
            train, test = self._part(by_part[TRAIN]), self._part(tests)
            listing, num_train = self._join(train, test), len(train.paths)
            for path in [*loose, *folders]:
                if path not in (by_part[TRAIN][0], tests[0]):
                    self._leave("beside the parts", path)
        elif len(by_part) > (None in by_part):
            listing = self._lone_part(loose, folders)
        else:
            listing = self._in_classes(self.root, loose, folders)
        return Contents(listing, num_train, self.left_out, tuple(self._tables_of(listing.paths)))

    def _part(self, folders: list[Path]) -> Listing:
        if len(folders) > 1:
            first, second = (folder.name for folder in folders[:2])
            raise InputError(f"{self.root} holds {first} and {second}, two names of one part: keep only one of them")
        return self._in_classes(folders[0], *self.entries(folders[0]))

    def _join(self, train: Listing, test: Listing) -> Listing:
        if train.classes != test.classes:
            one = sorted({*train.classes} ^ {*test.classes})[0]
            difference = f"have different class folders ({one} is in one of them only)"
            raise InputError(f"the parts of {self.root} {difference}: they must be the same")
        labels = None if train.labels is None or test.labels is None else np.concatenate([train.labels, test.labels])
        return Listing(train.paths + test.paths, labels, train.classes)

    def _lone_part(self, loose: list[Path], folders: list[Path]) -> Listing:
        """List a lone training part, which is all the data; refuse anything else as ambiguous."""
        inside = _Walk(self.root)
        full = [folder for folder in folders if any(inside.below(folder))]
        self.times |= inside.times
        parts = [folder for folder in full if part_of(folder.name)]
        others = [folder for folder in full if folder not in parts] + loose
        if not parts:
            return self._in_classes(self.root, loose, folders)
        part = parts[0]
        if others:
            raise InputError(
                f"{self.root} holds {part.name}, the name of a part, beside {others[0].name}, so that it may be a part "
                "or a class: put all classes into a folder train, or the pictures into folders train and test"
            )
        if part_of(part.name) != TRAIN:
            raise InputError(
                f"{self.root} holds {part.name}, but no part to train on: give {part} as `data_root`, or add train"
            )
        for folder in folders:
            if folder not in full:
                self._leave("without pictures", folder)
        return self._part(parts)

    def _in_classes(self, root: Path, loose: list[Path], folders: list[Path]) -> Listing:
        by_class = []
        for folder in folders:
            pictures = list(self.below(folder))
            if pictures:
                by_class.append((folder, pictures))
            else:
                self._leave("without pictures", folder)
        if not loose and not by_class:
            raise self.nothing_in(root)
        if loose and by_class:
            raise InputError(
                f"{root} holds pictures both loose ({loose[0].name}) and in folders ({by_class[0][0].name}): "
                "put all into class folders, or none"
            )
        if loose:
            return Listing(loose, None, [])
        if len(by_class) == 1:
            self._refuse_a_wrapper(*by_class[0])
        labels = np.concatenate([np.full(len(pictures), i, dtype=np.int64) for i, (_, pictures) in enumerate(by_class)])
        paths = [path for _, pictures in by_class for path in pictures]
        return Listing(paths, labels, [printable(folder.name) for folder, _ in by_class])

    def _refuse_a_wrapper(self, folder: Path, pictures: list[Path]) -> None:
        """Refuse a single class that holds folders of pictures: these are the real classes, and would be lost."""
        firsts = {path.relative_to(folder).parts[0] for path in pictures}
        if len(firsts) > 1 and not any(path.parent == folder for path in pictures):
            raise InputError(
                f"{folder.parent} holds one folder, {folder.name}, and the folders of pictures are in it: move them "
                f"up, or give {folder} as `data_root`"
            )

    def below(self, folder: Path, may_hold_parts: bool = False) -> Iterator[Path]:
        """Yield all pictures below a class folder, in natural order of their paths."""
        ahead = [(folder, True)]
        while ahead:
            path, is_folder = ahead.pop()
            if not is_folder:
                yield path
                continue
            pictures, folders = self.entries(path)
            kinds = {part_of(each.name): each for each in folders}
            if TRAIN in kinds and (TEST in kinds or VALIDATION in kinds) and not may_hold_parts:
                raise InputError(
                    f"{path} holds parts ({kinds[TRAIN].name}, ...) inside of what would be a class: give it as "
                    "`data_root` if it is the data set, or put the parts outside and the classes inside"
                )
            both = [(each, False) for each in pictures] + [(each, True) for each in folders]
            if folders:  # otherwise they are in order already
                both.sort(key=lambda item: natural_key(item[0].name))
            ahead += reversed(both)

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return the pictures and the folders directly in a folder, in natural order."""
        pictures, folders = [], []
        self.times[folder] = _time_of(folder)
        try:
            with os.scandir(folder) as scan:
                found = sorted(scan, key=lambda entry: natural_key(entry.name))
        except OSError as error:
            raise InputError(f"{folder} cannot be read ({reason_of(error)}): allow it, or move it away") from error
        for entry in found:
            path, ending = folder / entry.name, os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith(".") or entry.name.lower() in LITTER:
                self._leave("hidden", path)
            elif (kind := _kind_of(entry)) == "folder":
                if entry.is_symlink() and not self._may_follow(path):
                    self._leave("linked", path)
                else:
                    folders.append(path)
            elif not kind:
                self._leave("that are not files", path)
            elif ending in self.endings:
                pictures.append(path)
            else:
                self.left_out.setdefault("with other endings", Counter())[ending or entry.name] += 1
                self.tables += [path] * (ending in TABLES and len(self.tables) < TABLES_READ)
        return pictures, folders

    def _may_follow(self, link: Path) -> bool:
        """Return whether a link may be a class or a part: its pictures are nowhere else in the data."""
        target = os.path.realpath(link)
        inside = Path(target).is_relative_to(self.real) or Path(self.real).is_relative_to(target)
        parents = link.parent.relative_to(self.root).parts
        return not inside and (not parents or (len(parents) == 1 and part_of(parents[0]) is not None))

    def _leave(self, reason: str, path: Path) -> None:
        self.left_out.setdefault(reason, Counter())[path.relative_to(self.root).as_posix()] += 1

    def nothing_in(self, folder: Path) -> InputError:
        """Return the error that there are no pictures, which says what there is instead."""
        others = [f"{sum(names.values()):,} {reason}" for reason, names in self.left_out.items()]
        instead = f" (left out: {', '.join(others)})" if others else ""
        words = f"it needs files with one of the {len(self.endings)} endings of pictures, such as .png and .jpg"
        return InputError(f"no pictures in {folder}: {words}{instead}")

    def _tables_of(self, pictures: list[Path]) -> Iterator[str]:
        """Yield a note for each table that names pictures: someone may have meant it as labels."""
        names = {name for path in pictures for name in (path.name, path.stem)} if self.tables else set()
        for table in self.tables:
            try:
                with table.open("rb") as file:
                    head = file.read(TABLE_BYTES).decode(errors="replace")
            except OSError:
                continue
            if len(names.intersection(BETWEEN.split(head))) > 1:
                name = printable(table.relative_to(self.root).as_posix())
                yield f"{name} names pictures, but is not read: labels come from folders only"


def _time_of(folder: Path) -> int:
    """Return when a folder was last changed, in ns; 0 where that cannot be found out."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


def _kind_of(entry: os.DirEntry[str]) -> str:
    """Return `folder` or `file`; empty for anything else."""
    with suppress(OSError):  # a link to itself
        return "folder" if entry.is_dir() else "file" if entry.is_file() else ""
    return ""
