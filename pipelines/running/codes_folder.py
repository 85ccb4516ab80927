"""Folders that code datasets are written into: kept from other runs, and checked to be the one that was begun."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from codegrid.data.code_writer import find_lost, missing_ranges, reopen
from codegrid.data.manifest import CodeHeader, is_whole, read_manifest
from codegrid.locks import hold, real_path

from .cli import print_once
from .outputs import clear_output, open_output
from .run_folder import refuse_differences
from .settings import Leaves


class OpenCodes(NamedTuple):
    """A folder that codes are to be written into."""

    folder: Path  # with links resolved
    shown: Path  # for messages
    missing: list[range] | None  # the items of each missing shard; None: the folder is complete


def open_codes_folder(settings: Leaves, header: CodeHeader, provenance: dict[str, Any] | None = None) -> OpenCodes:
    """Take a folder for a code dataset, and keep other runs out of it. If files are gone, it is no longer complete.

    Raises `InputError` if the folder holds a code dataset made with another header or provenance.
    """

    def open_folder(folder: Path) -> OpenCodes:
        real = real_path(folder)
        if settings.overwrite:
            clear_output(real, settings)
        return OpenCodes(real, folder, _missing_codes(real, header, provenance or {}))

    return open_output(settings, open_folder)


def _missing_codes(folder: Path, header: CodeHeader, provenance: dict[str, Any]) -> list[range] | None:
    if not is_whole(folder):
        missing = missing_ranges(folder, header)  # first: this may refuse the folder, and then nothing must be written
        hold(folder)
        return _missing_codes(folder, header, provenance) if is_whole(folder) else missing
    manifest = read_manifest(folder)
    refuse_differences(folder, {name: manifest["provenance"].get(name) for name in provenance}, provenance)
    refuse_differences(folder, manifest["header"], asdict(header))
    lost = find_lost(folder, manifest)
    if not lost:
        return None
    hold(folder)
    print_once(f"{folder} was finished, but {lost} is gone: making it again")
    reopen(folder, manifest)
    return missing_ranges(folder, header)
