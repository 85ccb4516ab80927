"""Data sets by name, or by the path of the folder or file that holds them. Nothing here imports torch."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codegrid.errors import InputError
from codegrid.files import user_cache
from codegrid.hub import HUB_PREFIX
from codegrid.limits import short

from .tar_places import ENDING, are_shards, find_shards, is_remote

AT_HAND = ("mnist5k", "vizdoom")  # no download needed
DOWNLOADS = ("mnist", "fashion-mnist", "cifar10")
UNPACKED = ("emoji",)  # packages that the user has unpacked into `data_root`
SOUNDS = ("speech",)  # the others hold images
SEVERAL = SOUNDS  # data sets whose `data_root` may be several places
VIDEOS = ("frames",)  # with actions
NAMES = (*AT_HAND, *DOWNLOADS, *UNPACKED, "imagefolder", "npz", "tar", *VIDEOS, *SOUNDS)
TOLD_BY_NAME = (*DOWNLOADS, *UNPACKED, *VIDEOS, *SOUNDS)  # a path alone does not tell that it holds such data
LOCAL = re.compile(r"[.~/\\]|[A-Za-z]:[/\\]")  # the beginning of a path, never of a name on the hub
READERS = {".npz": "npz", ".npy": "npz", ".parquet": HUB_PREFIX, ".deb": "speech"}
Places = tuple[str, ...]  # of the files of a data set; none for its usual one
PATHS = f"a folder of pictures or a file that ends in {' '.join((*READERS, ENDING))}"


def as_places(data_root: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None) -> Places:
    """Return the places that `data_root` names: none, one, or several."""
    if data_root is None or data_root == "":
        return ()
    return (str(data_root),) if isinstance(data_root, str | os.PathLike) else tuple(map(str, data_root))


def find_data(
    dataset: str | None, data_root: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
) -> tuple[str, Places]:
    """Return the name of a data set, and where its files are.

    Args:
        dataset: a name in `NAMES`; `hf:NAME`; or the path of a folder of pictures or of a file, or paths or URLs of
            tar shards. Names take precedence: write a folder called `mnist` as `./mnist`.
        data_root: where the files are, for some data sets in several places. Without `dataset`, the folder or file to
            read.

    Raises `InputError` if there is no such name or path, or if the data set does not read the given files.
    """
    places = as_places(data_root)
    if dataset in AT_HAND and places:
        words = f"{dataset} reads no files: leave out `data_root`, or `dataset`"
        raise InputError(f"`data_root` {' '.join(places)}: {words}")
    if dataset is None and len(places) > 1:
        of_each = [find_data(None, place) for place in places]
        name = next((name for name, _ in of_each if name not in SEVERAL), of_each[0][0])
        return name, _check_several(name, places)
    if dataset in NAMES or (dataset or "").startswith(HUB_PREFIX):
        return str(dataset), _check_several(str(dataset), places)
    name = "data_root" if dataset is None else "dataset"
    given = (places[0] if places else "") if dataset is None else dataset
    path = Path(given).expanduser()
    if are_shards(given):
        if dataset is not None and places:
            raise _given_twice(dataset)
        return "tar", (given,)
    if not given or not path.exists():
        names = "" if dataset is None else f", {HUB_PREFIX}NAME, or one of {', '.join(NAMES)}"
        raise InputError(f"`{name}` {short(given)}: there is no such folder or file: give {PATHS}{names}")
    if dataset is not None and places:
        raise _given_twice(dataset)
    reader = "imagefolder" if path.is_dir() else READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"`{name}` {path} is not read: give {PATHS}")
    if reader == HUB_PREFIX:
        return HUB_PREFIX + os.path.join(".", path), ()
    return reader, (str(path),)


def download_folder() -> Path:
    """Return the folder that data sets are downloaded into. Raises `InputError` if there is no home folder."""
    try:
        return user_cache()
    except RuntimeError as error:
        raise InputError("there is no home folder to download data into: give `data_root`") from error


def kind_of(dataset: str) -> str:
    """Return the kind of signal that a data set holds: `image` or `sound`."""
    return "sound" if dataset in SOUNDS else "image"


def _check_several(dataset: str, places: Places) -> Places:
    """Return the places. Raises `InputError` if they are several, but the data set takes one, or if two are equal."""
    if len(places) > 1 and dataset not in SEVERAL:
        words = f"{dataset} takes one place: give one, or `dataset` {' or '.join(SEVERAL)}, which takes several"
        raise InputError(f"`data_root` {' '.join(places)}: {words}")
    paths = [Path(place).expanduser().absolute() for place in places]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise InputError(f"`data_root` {places[number]} is given twice: give each place once")
    return places


def _given_twice(dataset: str) -> InputError:
    return InputError(f"`dataset` {dataset} is already the path of the data: leave `data_root` out")


def is_there(place: str) -> bool:
    """Return whether a path or a pattern names something on this machine."""
    try:
        return not is_remote(place) and bool(Path(place).expanduser().exists() or find_shards(place))
    except (InputError, OSError):  # such as a folder that this user may not enter
        return False


def is_local(dataset: str) -> bool:
    """Return whether a data set is `hf:` followed by a path on this machine."""
    return dataset.startswith(HUB_PREFIX) and LOCAL.match(dataset.removeprefix(HUB_PREFIX)) is not None


def public_name(dataset: str) -> str:
    """Return the name of a data set that can be published: only the last part of a local path."""
    name = dataset.removeprefix(HUB_PREFIX)
    return HUB_PREFIX + re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_local(dataset) else dataset


def describe_data(dataset: str, places: Places) -> dict[str, Any]:
    """Return what a model or a code dataset says of its data: the name, and if it has several places, their names.

    Paths are not published.
    """
    told = {"dataset": public_name(dataset)}
    return told | {"places": [Path(place).name for place in places]} if dataset in SEVERAL else told


def make_absolute(dataset: str, places: Places) -> tuple[str, Places]:
    """Return a data set and its places with absolute paths, which mean the same in every working folder."""
    if is_local(dataset):
        dataset = HUB_PREFIX + str(Path(dataset.removeprefix(HUB_PREFIX)).expanduser().absolute())
    here = [place if is_remote(place) else str(Path(place).expanduser().absolute()) for place in places]
    return dataset, tuple(here)
