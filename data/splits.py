"""Train and test parts that hold every class in proportion, however the data are sorted."""

import numpy as np

HELD_OUT = 10  # every tenth image of each class


def held_out_mask(labels: np.ndarray | None, length: int) -> np.ndarray:
    """True for every tenth image of each class (of all images, without labels): the part held out for testing.

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
    """The indices of the `train` or the `test` part, in order."""
    mask = held_out_mask(labels, length)
    return np.flatnonzero(mask if split == "test" else ~mask)
