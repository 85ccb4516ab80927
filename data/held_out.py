"""Which grids the prior learns from, and which it is validated on."""

from collections.abc import Sequence

import numpy as np

from codegrid.data import CodeDataset
from codegrid.errors import InputError

from .codes import CodeBatch
from .splits import split_indices


class Part:
    """Some items of a code dataset, as a data set."""

    def __init__(self, codes: CodeDataset, numbers: np.ndarray) -> None:
        self.codes, self.numbers = codes, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitems__(self, indices: Sequence[int]) -> CodeBatch:
        return self.codes.__getitems__(self.numbers[np.asarray(indices)])

    def identity(self) -> str:
        """A digest of the data set this is a part of."""
        return self.codes.identity()


def hold_out(codes: CodeDataset, validation_codes: str | None) -> tuple[CodeDataset | Part, CodeDataset | Part]:
    """Grids to train and to validate on: those of another folder, or every tenth of each class."""
    if validation_codes is None:
        parts = [Part(codes, split_indices(codes.labels, len(codes), split)) for split in ("train", "test")]
        if not all(len(part) for part in parts):
            raise InputError(f"{codes.folder} holds {len(codes)} grids: too few to train and validate on")
        return parts[0], parts[1]
    other = CodeDataset(validation_codes)
    if other.header.tokenizer_fingerprint != codes.header.tokenizer_fingerprint:
        raise InputError(
            f"{validation_codes} and {codes.folder} come from different tokenizers: export one of them again"
        )
    if other.classes != codes.classes:
        raise InputError(f"{validation_codes} and {codes.folder} have different classes: export one of them again")
    return codes, other
