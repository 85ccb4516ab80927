"""The data set of a command: the one its settings name, or else the one the tokenizer was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from codegrid.data.names import (
    AT_HAND,
    DOWNLOADS,
    PATHS,
    TOLD_BY_NAME,
    Places,
    download_folder,
    find_data,
    is_local,
    is_there,
)
from codegrid.data.tar_places import is_remote
from codegrid.errors import InputError
from codegrid.hub import HUB_PREFIX
from codegrid.limits import short
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.run_folder import read_data, read_record
from codegrid.pipelines.running.settings import UsesImages
from codegrid.protocols import Tokenizer

Settings = TypeVar("Settings", bound=UsesImages)

# where these data sets lie in the download folder
DOWNLOADED = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "cifar-10-batches-py"}


def choose_data(settings: Settings, tokenizer: Tokenizer | None = None) -> Settings:
    """Return settings whose `dataset` is set, and print which one was chosen if it was not given.

    By default it is the data set the tokenizer was trained on, without unreadable pictures if training skipped them;
    without a tokenizer, digits that need no download.

    Raises `InputError` if there is no such data set, or if the tokenizer's is unknown.
    """
    named = settings.dataset or (tokenizer is None and settings.data_root)
    if named:
        dataset, data_root = find_data(settings.dataset, settings.data_root)
    elif tokenizer is None:
        dataset, data_root = AT_HAND[0], ()
        print_once(f"no data set given: using {dataset}, handwritten digits (--dataset PATH: pictures of your own)")
    else:
        dataset, data_root = learnt_data(tokenizer, settings.data_root)
        print_once(f"data set of the tokenizer: {' '.join((dataset, *data_root))}")
        settings = replace(settings, skip_unreadable=settings.skip_unreadable or skips_unreadable(tokenizer))
    return replace(settings, dataset=dataset, data_root=data_root)


def learnt_data(
    tokenizer: Tokenizer, data_root: str | Places = (), remedy: str = f"give `dataset`, {PATHS}, or a name"
) -> tuple[str, Places]:
    """Return the data set that a tokenizer was trained on, and its places: `data_root`, if that is given.

    `remedy` ends the messages: what to give in place of the data set.

    Raises `InputError` if it is unknown, or is no longer there.
    """
    recorded = recorded_data(tokenizer)
    told = tokenizer.provenance.get("dataset")
    name = recorded[0] if recorded else told
    if data_root:
        return find_data(name if name in TOLD_BY_NAME else None, data_root)
    if recorded:
        for place in (recorded[0].removeprefix(HUB_PREFIX),) if is_local(recorded[0]) else recorded[1]:
            if not is_remote(place) and not is_there(place):
                raise InputError(f"the tokenizer was trained on {place}, which is no longer there: {remedy}")
        return recorded
    is_on_hub = isinstance(told, str) and told.startswith(HUB_PREFIX) and "/" in told and not is_local(told)
    if is_on_hub or told in AT_HAND + DOWNLOADS:
        return find_data(told, ())
    known = f" ({short(told)}, elsewhere)" if isinstance(told, str) else ""
    raise InputError(f"it is unknown where the images are that the tokenizer was trained on{known}: {remedy}")


def data_at_hand(tokenizer: Tokenizer) -> tuple[str, Places] | None:
    """Return the data set that a tokenizer was trained on, and its places; None if it is not on this machine."""
    recorded = recorded_data(tokenizer)
    name, places = recorded or (str(tokenizer.provenance.get("dataset")), ())
    if name in AT_HAND:
        return name, ()
    if name in DOWNLOADED:
        places = (str(Path(places[0] if places else download_folder()) / DOWNLOADED[name]),)
    elif recorded and is_local(name):
        places = (name.removeprefix(HUB_PREFIX),)
    return learnt_data(tokenizer) if places and all(map(is_there, places)) else None


def skips_unreadable(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer was trained without the pictures that cannot be read."""
    folder: Path | None = getattr(tokenizer, "loaded_from", None)
    records = [read_record(place, "train-tokenizer") for place in (folder, folder.parent)] if folder else []
    return any(record.get("skip_unreadable") is True for record in records)


def recorded_data(tokenizer: Tokenizer) -> tuple[str, Places] | None:
    """Return the data set that run.json in a tokenizer's folder, or in its parent, records; None if neither does."""
    folder: Path | None = getattr(tokenizer, "loaded_from", None)
    return None if folder is None else read_data(folder) or read_data(folder.parent)
