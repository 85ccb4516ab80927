"""An entropy coder's two sides, which are driven by the same lines: a writer and a reader of one stream.

Shapes: n symbols, K alphabet.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from codegrid.errors import InputError, import_extra, reason_of

WORD = np.dtype("<u4")  # of a stream


class Stream(Protocol):
    """Either side of a coder: given the same frequencies in the same order, both return the same symbols."""

    is_reading: bool

    def code(self, frequencies: np.ndarray, symbols: np.ndarray | None = None) -> np.ndarray:
        """Write symbols (n,) int32, or read them; return them.

        Args:
            frequencies: (n, K) float32 whole numbers, in proportion to the probabilities.
            symbols: to write; ignored in reading.
        """


class Writer:
    """The coder's side that writes symbols. Raises `InputError` if the package constriction is missing."""

    is_reading = False

    def __init__(self) -> None:
        package = import_constriction()
        self._coder, self._model = package.stream.queue.RangeEncoder(), _model(package)

    def code(self, frequencies: np.ndarray, symbols: np.ndarray | None = None) -> np.ndarray:
        """Write symbols (n,) int32, and return them."""
        assert symbols is not None
        if frequencies.shape[1] > 1:  # a single symbol says nothing, and constriction refuses it
            self._coder.encode(symbols, self._model, frequencies)
        return symbols

    def content(self) -> bytes:
        """Return everything that was written."""
        return bytes(self._coder.get_compressed().astype(WORD).tobytes())


class Reader:
    """The coder's side that reads symbols back. Raises `InputError` if the package constriction is missing."""

    is_reading = True

    def __init__(self, content: bytes) -> None:
        package = import_constriction()
        if len(content) % np.dtype(WORD).itemsize:
            raise InputError("the compressed stream is damaged (it is no number of words): make it again")
        words = np.frombuffer(content, WORD).astype(np.uint32)
        self._coder, self._model = package.stream.queue.RangeDecoder(words), _model(package)

    def code(self, frequencies: np.ndarray, symbols: np.ndarray | None = None) -> np.ndarray:
        """Return the next symbols (n,) int32."""
        if frequencies.shape[1] == 1:
            return np.zeros(len(frequencies), np.int32)
        try:
            read: np.ndarray = self._coder.decode(self._model, frequencies)
        except (AssertionError, ValueError) as error:  # of constriction
            raise InputError(f"the compressed stream is damaged ({reason_of(error)}): make it again") from error
        return read


def import_constriction() -> Any:
    """Return the package of the entropy coder. Raises `InputError` if it is missing."""
    return import_extra("constriction", "entropy coding", "compress")


def _model(package: Any) -> Any:
    # lazy: the frequencies of each symbol are different, so that no table of them is worth its time
    return package.stream.model.Categorical(perfect=False)
