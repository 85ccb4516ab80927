"""Arrays inside an .npz file whose rows come one batch after the other: `numpy.savez` would need them all at once."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np


@contextmanager
def open_array(archive: zipfile.ZipFile, name: str, dtype: type, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """A file in the archive that waits for the bytes of such an array, in C order."""
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:  # zip64: its size is not known yet
        np.lib.format.write_array_header_1_0(entry, description)
        yield entry


def read_shape(entry: IO[bytes]) -> tuple[int, ...]:
    """The shape of the array whose .npy file begins here; its bytes follow."""
    np.lib.format.read_magic(entry)
    return np.lib.format.read_array_header_1_0(entry)[0]
