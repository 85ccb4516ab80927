"""Data sets by name, or by the path of the folder or file that holds them. Nothing here imports torch."""

import os
import re
from pathlib import Path

from codegrid.errors import InputError
from codegrid.files import user_cache
from codegrid.hub import HUB_PREFIX
from codegrid.limits import short

from .tar_places import ENDING, are_shards, find_shards, is_remote

AT_HAND = ("mnist5k",)  # no download needed
DOWNLOADS = ("mnist", "fashion-mnist", "cifar10")
UNPACKED = ("emoji",)  # packages that the user has unpacked into `data_root`
NAMES = (*AT_HAND, *DOWNLOADS, *UNPACKED, "imagefolder", "npz", "tar")
LOCAL = re.compile(r"[.~/\\]|[A-Za-z]:[/\\]")  # the beginning of a path, never of a name on the hub
READERS = {".npz": "npz", ".npy": "npz", ".parquet": HUB_PREFIX}
PATHS = f"a folder of pictures or a file that ends in {' '.join((*READERS, ENDING))}"


def find_data(dataset: str | None, data_root: str | None) -> tuple[str, str | None]:
    """Return the name of a data set, and where its files are.

    Args:
        dataset: a name in `NAMES`; `hf:NAME`; or the path of a folder of pictures or of a file, or paths or URLs of
            tar shards. Names take precedence: write a folder called `mnist` as `./mnist`.
        data_root: where the files are. Without `dataset`, the folder or file to read.

    Raises `InputError` if there is no such name or path, or if the data set does not read the given files.
    """
    if dataset in AT_HAND and data_root is not None:
        raise InputError(f"`data_root` {data_root}: {dataset} reads no files: leave out `data_root`, or `dataset`")
    if dataset in NAMES or (dataset or "").startswith(HUB_PREFIX):
        return str(dataset), data_root
    name = "data_root" if dataset is None else "dataset"
    given = str(data_root if dataset is None else dataset)
    path = Path(given).expanduser()
    if are_shards(given):
        if dataset is not None and data_root is not None:
            raise _given_twice(dataset)
        return "tar", given
    if not given or not path.exists():
        names = "" if dataset is None else f", {HUB_PREFIX}NAME, or one of {', '.join(NAMES)}"
        raise InputError(f"`{name}` {short(given)}: there is no such folder or file: give {PATHS}{names}")
    if dataset is not None and data_root is not None:
        raise _given_twice(dataset)
    reader = "imagefolder" if path.is_dir() else READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"`{name}` {path} is not read: give {PATHS}")
    if reader == HUB_PREFIX:
        return HUB_PREFIX + os.path.join(".", path), None
    return reader, str(path)


def download_folder() -> Path:
    """Return the folder that data sets are downloaded into. Raises `InputError` if there is no home folder."""
    try:
        return user_cache()
    except RuntimeError as error:
        raise InputError("there is no home folder to download data into: give `data_root`") from error


def _given_twice(dataset: str) -> InputError:
    return InputError(f"`dataset` {dataset} is already the path of the data: leave `data_root` out")


def is_there(place: str) -> bool:
    """Return whether a path or a pattern names something on this machine."""
    try:
        return not is_remote(place) and bool(Path(place).expanduser().exists() or find_shards(place))
    except InputError:
        return False


def is_local(dataset: str) -> bool:
    """Return whether a data set is `hf:` followed by a path on this machine."""
    return dataset.startswith(HUB_PREFIX) and LOCAL.match(dataset.removeprefix(HUB_PREFIX)) is not None


def public_name(dataset: str) -> str:
    """Return the name of a data set that can be published: only the last part of a local path."""
    name = dataset.removeprefix(HUB_PREFIX)
    return HUB_PREFIX + re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_local(dataset) else dataset


def make_absolute(dataset: str, data_root: str | None) -> tuple[str, str | None]:
    """Return a data set and its `data_root` with absolute paths, which mean the same in every working folder."""
    if is_local(dataset):
        dataset = HUB_PREFIX + str(Path(dataset.removeprefix(HUB_PREFIX)).expanduser().absolute())
    if data_root is None or is_remote(data_root):
        return dataset, data_root
    return dataset, str(Path(data_root).expanduser().absolute())
