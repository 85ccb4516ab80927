"""Splits into train and test parts with the same proportions of classes, however the data are sorted.

Shapes: n items.
"""

import numpy as np

from codegrid.errors import InputError
from codegrid.tensors import digest_of, sha256

from .code_files import AnyCodes, Assumed, open_to_learn
from .codes import CodeBatch, IndexedCodes
from .loading import Indices, item_numbers
from .manifest import EPISODE
from .videos import names_of_actions

SHARE = 10  # one item in ten is held out
HELD_OUT, TO_LEARN = 100, 400  # a small data set holds out up to 100, as long as 400 are left to train on
# a share measured on 100 items, such as an accuracy, has a standard error of up to 5 points
FEW = 100


def held_out_mask(labels: np.ndarray | None, length: int) -> np.ndarray:
    """Return (n,) bool, True for held-out items: a tenth, or up to 100 if at least 400 are left to train on.

    Each class gives its share, to within one, evenly spaced in the order of the data; which of its items it gives
    depends only on them and on the sizes of the classes. A class of one item keeps it for training, as long as the
    others can give enough. Of two or more items, at least one is held out.
    """
    labels = np.zeros(length, dtype=np.int64) if labels is None else np.asarray(labels)
    count = max(length // SHARE, min(HELD_OUT, length - TO_LEARN), min(1, length - 1), 0)
    order = np.argsort(labels, kind="stable")
    _, firsts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    giving = np.where(sizes > 1, sizes, 0)
    if giving.sum() < 2 * count:
        giving = sizes
    # rounded sums instead of sums of rounded shares, so that the total is `count`
    sums = (np.cumsum(giving) * count + giving.sum() // 2) // max(1, giving.sum())
    mask = np.zeros(length, dtype=bool)
    for first, size, given in zip(firsts, sizes, np.diff(sums, prepend=0), strict=True):
        mask[order[first + np.arange(1, given + 1) * size // max(1, given) - 1]] = True
    return mask


def split_indices(labels: np.ndarray | None, length: int, split: str) -> np.ndarray:
    """Return the indices of the `train` or the `test` part, or of `all`, in order."""
    if split == "all":
        return np.arange(length)
    mask = held_out_mask(labels, length)
    return np.flatnonzero(mask if split == "test" else ~mask)


def warn_of_few(count: int, items: str) -> list[str]:
    """Return a warning if so few items are held out that figures measured on them are rough; otherwise nothing.

    >>> warn_of_few(9, "images")
    ['only 9 held-out images: figures that are measured on them are rough']
    """
    return [f"only {count} held-out {items}: figures that are measured on them are rough"] if count < FEW else []


class Subset(IndexedCodes):
    """A data set of some images of a code dataset.

    Args:
        codes: the code dataset.
        numbers: (n,) the indices of its images.
    """

    def __init__(self, codes: AnyCodes, numbers: np.ndarray) -> None:
        self.codes, self.numbers = codes, np.asarray(numbers, dtype=np.int64)
        self.layout, self.classes, self.views = codes.layout, codes.classes, codes.views

    def __len__(self) -> int:
        return len(self.numbers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self):,} rows of {self.codes!r})"

    def batch(self, indices: Indices, view: int | Indices = 0) -> CodeBatch:
        """Return the codes of some images, given by their indices in this subset; see `IndexedCodes.batch`."""
        return self.codes.batch(self.numbers[item_numbers(indices, len(self))], view)

    def fingerprint(self) -> str:
        """Return a digest that differs between different subsets."""
        return digest_of([self.codes.fingerprint(), sha256(self.numbers)])

    @property
    def labels(self) -> np.ndarray | None:
        """Labels (n,) int64; None if there are none."""
        labels = self.codes.labels
        return None if labels is None else labels[self.numbers]

    def column(self, name: str) -> np.ndarray | None:
        """Return a column of numbers (n, *shape), of all images; None if there is none of this name."""
        column = self.codes.column(name)
        return None if column is None else column[self.numbers]


def _part_of(codes: AnyCodes, split: str) -> np.ndarray:
    """Return the indices of a part of codes; frames of one episode are alike, and stay in one part."""
    episodes = codes.column(EPISODE)
    if episodes is None:
        return split_indices(codes.labels, len(codes), split)
    names, of_frame = np.unique(episodes, return_inverse=True)
    return np.flatnonzero(np.isin(of_frame, split_indices(None, len(names), split)))


def hold_out(codes: AnyCodes, validation_codes: str | None) -> tuple[AnyCodes | Subset, AnyCodes | Subset]:
    """Return codes to train on and codes to validate on.

    The latter come from `validation_codes`, a folder or file, or else are those of images that are held out, with all
    their views; of videos, whole episodes are held out.

    Raises `InputError` if there are too few, or the two do not match or hold the same images.
    """
    if validation_codes is None:
        training, test = (_part_of(codes, split) for split in ("train", "test"))
        if not len(training) or not len(test):
            raise InputError(f"{codes.folder} holds {len(codes)} grids: too few to train and validate on")
        return Subset(codes, training), Subset(codes, test)
    assumed = Assumed(codes.layout, codes.header.tokenizer_fingerprint, codes.classes)
    other = open_to_learn(validation_codes, assumed)
    if other.header.tokenizer_fingerprint != codes.header.tokenizer_fingerprint:
        raise InputError(f"{validation_codes} and {codes.folder} come from different tokenizers: export one again")
    for name, ours, theirs in (
        ("grids", codes.layout, other.layout), ("classes", codes.classes, other.classes),
        ("actions", *map(names_of_actions, (codes, other))),
    ):  # fmt: skip
        if ours != theirs:
            raise InputError(f"{validation_codes} and {codes.folder} have different {name}: export one again")
    splits = (codes.header.split, other.header.split)
    if codes.header.source == other.header.source or splits in (("all", "train"), ("all", "test")):
        raise InputError(
            f"{validation_codes} has images that {codes.folder} also has: export them again, one as the part train and "
            "one as the part test, or give other `validation_codes`"
        )
    return codes, other
