"""Code datasets, written shard by shard: an export that was stopped continues where it was.

The file with the digests of finished shards is removed once the manifest, which also holds them, is written.

Shapes: m images of a shard, v views, *shape the sites of a grid or the shape of a column.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from codegrid.errors import InputError
from codegrid.files import CLASSIFIER, SETTINGS_FILE, write_folder, write_json
from codegrid.strict_json import parse_json, to_json
from codegrid.tensors import digest_of, write_tensors

from .codes import CodeBatch
from .digests import DIGESTS, read_digests, unwritten, write_digests
from .loading import in_order
from .manifest import FORMAT, MANIFEST, TABLES, CodeHeader, shard_name
from .shards import pack_shard, read_metadata

SHARD_SIZE = 8192  # rows: views of images
SHARD = re.compile(r"codes-\d{5,}\.safetensors")
METADATA = "codegrid"  # one key for everything: several are written in any order, and equal files should be equal


def shard_ranges(num_images: int, views: int = 1) -> list[range]:
    """Return the images of each shard, in order: it holds up to 8,192 rows, with all views of an image."""
    return in_order(num_images, max(1, SHARD_SIZE // views))


def missing_ranges(folder: str | Path, header: CodeHeader) -> list[range]:
    """Return the image ranges of the shards that an earlier export into the folder, perhaps killed, has not finished.

    Raises `InputError` if the folder holds anything but shards of the same export.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: `output` must be a folder")
    found = [path for path in sorted(folder.iterdir()) if path.name[0] != "."] if folder.is_dir() else []
    for path in found:
        if path.name.startswith("codes-"):
            _refuse_another_export(path, header)
        elif path.name not in (TABLES, SETTINGS_FILE, CLASSIFIER):
            raise InputError(f"{folder} already holds other files ({path.name}): choose a new or empty `output`")
    return list(unwritten(folder, _files_of(header)).values())


def find_lost(folder: Path | str, manifest: dict[str, Any]) -> str:
    """Return the name of a file that is missing from a finished export; empty if there is none."""
    files = [record["file"] for record in manifest["shards"]] + ([TABLES] if manifest["tables"] else [])
    return next((name for name in files if not (Path(folder) / name).is_file()), "")


def reopen(folder: str | Path, manifest: dict[str, Any]) -> None:
    """Turn a finished export into an unfinished one, which can be continued."""
    write_digests(folder, {record["file"]: record["sha256"] for record in manifest["shards"]})
    (Path(folder) / MANIFEST).unlink()


def write_codes(
    folder: str | Path,
    header: CodeHeader,
    missing: list[range],
    shards: Iterable[CodeBatch],
    provenance: dict[str, Any],
    tables: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the missing shards as they arrive, then the tables and the manifest.

    Args:
        missing: the result of `missing_ranges`.
        shards: the codes (m·v, *shape) and columns (m, *shape) of each missing range, in that order.
        provenance: facts about the export, for the manifest.
        tables: the quantizer's entries, `entries.0` (K, D) for the first grid, and so on.

    Raises `InputError` if a shard does not match the header.
    """
    folder = Path(folder)
    digests = read_digests(folder)
    metadata = {METADATA: to_json(asdict(header), sort_keys=True)}
    files = _files_of(header)
    names = {images: name for name, images in files.items()}
    for images, shard in zip(missing, shards, strict=True):
        arrays = pack_shard(*shard, len(images), header)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        name = names[images]
        with write_folder(folder, index=name) as staging:
            digests[name] = write_tensors(staging / name, tensors, metadata)
        write_digests(folder, digests)
    records = [{"file": name, "num_images": len(files[name]), "sha256": digests[name]} for name in files]
    fields = {"format": FORMAT, "header": asdict(header), "shards": records, "tables": "", "provenance": provenance}
    with write_folder(folder, index=MANIFEST) as staging:
        if tables:
            apart = {name: table.detach().clone() for name, table in tables.items()}  # grids may share one codebook
            fields["tables"] = write_tensors(staging / TABLES, apart)
        write_json(staging / MANIFEST, {**fields, "sha256": digest_of(fields)})
    (folder / DIGESTS).unlink(missing_ok=True)


def remove_codes(folder: str | Path) -> None:
    """Remove a code dataset, and its folder if nothing else is in it. Links are not followed."""
    folder = Path(folder)
    if folder.is_symlink():
        return
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in (MANIFEST, TABLES, DIGESTS) or SHARD.fullmatch(path.name):
            path.unlink()
    with suppress(OSError):  # something else is there
        folder.rmdir()


def _files_of(header: CodeHeader) -> dict[str, range]:
    """Return the images of each shard by the name of its file."""
    ranges = shard_ranges(header.num_images, header.views)
    return {shard_name(number): images for number, images in enumerate(ranges)}


def _refuse_another_export(path: Path, header: CodeHeader) -> None:
    """Raise `InputError`, naming the difference, if a shard was written with a different header."""
    try:
        earlier = parse_json(read_metadata(path)[METADATA])
        different = [name for name, value in asdict(header).items() if earlier[name] != value]
    except Exception:  # damaged, which raises many types of errors: it will be written again
        return
    if different:
        raise InputError(
            f"{path.parent} holds unfinished codes made with a different {different[0]}: choose another `output`"
        )
