"""Train and test parts that hold every class in proportion, however the data are sorted.

Shapes: n items.
"""

import numpy as np

from codegrid.codes import Layout
from codegrid.errors import InputError
from codegrid.tensors import digest_of, sha256

from .codes import CodeBatch, CodeDataset, IndexedCodes
from .loading import Indices, item_numbers

HELD_OUT = 10  # every tenth image of each class


def held_out_mask(labels: np.ndarray | None, length: int) -> np.ndarray:
    """Return (n,) bool, True for every tenth image of each class, or of all without labels: the part held out.

    A class of fewer than ten images keeps them all for training. Where that leaves nothing to test on,
    the last image of the data set is held out.
    """
    labels = np.zeros(length, dtype=np.int64) if labels is None else np.asarray(labels)
    mask = np.zeros(length, dtype=bool)
    order = np.argsort(labels, kind="stable")
    _, first, class_of = np.unique(labels[order], return_index=True, return_inverse=True)
    number_in_class = np.arange(length) - first[class_of]
    mask[order] = number_in_class % HELD_OUT == HELD_OUT - 1
    if length > 1 and not mask.any():
        mask[-1] = True
    return mask


def split_indices(labels: np.ndarray | None, length: int, split: str) -> np.ndarray:
    """Return the indices of the `train` or the `test` part, in order."""
    mask = held_out_mask(labels, length)
    return np.flatnonzero(mask if split == "test" else ~mask)


class Subset(IndexedCodes):
    """Some rows of a code dataset, as a data set.

    Args:
        codes: the code dataset.
        numbers: (n,) the rows of it.
    """

    def __init__(self, codes: CodeDataset, numbers: np.ndarray) -> None:
        self.codes, self.numbers = codes, np.asarray(numbers, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.numbers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self):,} rows of {self.codes!r})"

    def batch(self, indices: Indices) -> CodeBatch:
        """Return some rows, in the order of their numbers in this part."""
        return self.codes.batch(self.numbers[item_numbers(indices, len(self))])

    def fingerprint(self) -> str:
        """Return a digest that tells two parts apart."""
        return digest_of([self.codes.fingerprint(), sha256(self.numbers)])

    @property
    def layout(self) -> Layout:
        """The grids, coarse to fine."""
        return self.codes.layout

    @property
    def classes(self) -> list[str]:
        """The name of each label; empty where there are no labels."""
        return self.codes.classes

    @property
    def labels(self) -> np.ndarray | None:
        """(n,) int64; None where there are none."""
        labels = self.codes.labels
        return None if labels is None else labels[self.numbers]


def hold_out(codes: CodeDataset, validation_codes: str | None) -> tuple[CodeDataset | Subset, CodeDataset | Subset]:
    """Return codes to train and to validate on: those of another folder, or every tenth of each class.

    All views of an image are in one part.
    """
    if validation_codes is None:
        parts = [Subset(codes, numbers) for numbers in _split_rows(codes)]
        if not all(len(part) for part in parts):
            raise InputError(f"{codes.folder} holds {len(codes)} grids: too few to train and validate on")
        return parts[0], parts[1]
    other = CodeDataset(validation_codes)
    if other.header.tokenizer_fingerprint != codes.header.tokenizer_fingerprint:
        raise InputError(
            f"{validation_codes} and {codes.folder} come from different tokenizers: export one of them again"
        )
    for name, ours, theirs in (("grids", codes.layout, other.layout), ("classes", codes.classes, other.classes)):
        if ours != theirs:
            raise InputError(f"{validation_codes} and {codes.folder} have different {name}: export one of them again")
    return codes, other


def _split_rows(codes: CodeDataset) -> list[np.ndarray]:
    """The rows of the train and of the test part."""
    views, labels = codes.header.views, codes.labels
    labels = None if labels is None else labels[::views]
    rows = np.arange(len(codes)).reshape(-1, views)
    return [rows[split_indices(labels, len(rows), split)].ravel() for split in ("train", "test")]
