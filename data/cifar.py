"""CIFAR-10 as torchvision downloads it. Its files are pickles, which torchvision would run: here they may hold arrays.

Shapes: n images.
"""

import pickle
from pathlib import Path

import numpy as np

from codegrid.errors import InputError
from codegrid.limits import is_list_of

# what a pickled array asks for, by its names in old and new versions of numpy
ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
}


def read_cifar10(root: Path, train: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images (n, 32, 32, 3) uint8, labels (n,) int64 and the names of the classes; downloads what is not there.

    Raises RuntimeError or OSError where that fails.
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    folder = root / CIFAR10.base_folder
    files = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]

    def is_whole() -> bool:
        return all(check_integrity(folder / name, checksum) for name, checksum in files)

    if not is_whole():
        download_and_extract_archive(CIFAR10.url, root, filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)
        if not is_whole():
            raise RuntimeError("the downloaded files are damaged")
    classes = _load(folder / CIFAR10.meta["filename"]).get(CIFAR10.meta["key"])
    if not is_list_of(classes, str):
        raise _damaged(folder / CIFAR10.meta["filename"])
    parts = CIFAR10.train_list if train else CIFAR10.test_list
    batches = [_read_batch(folder / name, len(classes)) for name, _ in parts]
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels, classes


def _read_batch(path: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows (n, 3072) and labels (n,) of a file."""
    batch = _load(path)
    pixels, labels = batch.get("data"), batch.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3 * 32 * 32,):
        raise _damaged(path)
    if not is_list_of(labels, int) or len(labels) != len(pixels) or not all(0 <= n < num_classes for n in labels):
        raise _damaged(path)
    return pixels, np.array(labels, dtype=np.int64)


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        """What the pickle asks for by this name, where it is part of an array."""
        if (module, name) not in ALLOWED:
            raise InputError(f"it asks to run {module}.{name}")
        return ALLOWED[module, name]


def _load(path: Path) -> dict:
    with path.open("rb") as file:
        try:
            value = _ArraysOnly(file, encoding="latin1").load()
        except InputError as error:
            raise InputError(f"{path} is no file of CIFAR-10 ({error}): remove it") from error
        except Exception as error:  # a damaged pickle raises whatever it happens on
            raise _damaged(path) from error
    if not isinstance(value, dict):
        raise _damaged(path)
    return value


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged: remove it, and it will be downloaded again")
