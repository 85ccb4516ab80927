"""Code datasets, written shard by shard: an export that was stopped goes on where it was.

While an export runs, `.digests.json` keeps the SHA-256 of each shard that is whole. It goes when the manifest, which
holds them too, is there.

Shapes: m rows of a shard, *shape the sites of a grid or the shape of a column.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from codegrid.codes import Codes
from codegrid.errors import InputError
from codegrid.files import SETTINGS_FILE, write_folder, write_json
from codegrid.tensors import digest_of, digest_of_file, read_json, write_tensors

from .manifest import FORMAT, MANIFEST, TABLES, CodeHeader, shard_name
from .shards import Column, pack_shard, read_metadata

SHARD_SIZE = 8192  # images
DIGESTS = ".digests.json"
METADATA = (
    "codegrid"  # one key with all in it: the library writes several in any order, and equal files should be equal
)


class CodeShard(NamedTuple):
    """A stretch of a data set, encoded: the content of a shard."""

    codes: Codes  # (m, *shape) int64, one for each grid
    columns: dict[str, Column]  # (m, *shape) or texts, by name


def shard_ranges(num_images: int) -> list[range]:
    """Return the images of each shard, in order."""
    return [range(first, min(first + SHARD_SIZE, num_images)) for first in range(0, num_images, SHARD_SIZE)]


def missing_ranges(folder: str | Path, header: CodeHeader) -> list[range]:
    """Return the images of each shard that an export into the folder, perhaps a killed one, has not left whole.

    Raises `InputError` where the folder holds anything but shards of the same export.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: `output` must be a folder")
    found = [path for path in sorted(folder.iterdir()) if path.name[0] != "."] if folder.is_dir() else []
    for path in found:
        if path.name.startswith("codes-"):
            _refuse_another_export(path, header)
        elif path.name not in (TABLES, SETTINGS_FILE):
            raise InputError(f"{folder} already holds other files ({path.name}): choose a new or empty `output`")
    digests = _read_digests(folder)
    whole = {path.name for path in found if path.name in digests and digest_of_file(path) == digests[path.name]}
    return [images for images in shard_ranges(header.num_images) if _file_of(images) not in whole]


def write_codes(
    folder: str | Path,
    header: CodeHeader,
    missing: list[range],
    shards: Iterable[CodeShard],
    provenance: dict[str, Any],
    tables: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the missing shards as they come, then the tables and the manifest.

    Args:
        missing: the answer of `missing_ranges`.
        shards: the shard of each missing range, in turn.
        provenance: facts about the export, for the manifest.
        tables: the quantizer's entries, `entries.0` (K, D) for the first grid, and so on.

    Raises `InputError` where a shard does not hold what the header says.
    """
    folder = Path(folder)
    digests = _read_digests(folder)
    metadata = {METADATA: json.dumps(asdict(header), sort_keys=True)}
    for images, shard in zip(missing, shards, strict=True):
        arrays = pack_shard(*shard, len(images) * header.views, header)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        name = _file_of(images)
        with write_folder(folder, index=name) as staging:
            digests[name] = write_tensors(staging / name, tensors, metadata)
        with write_folder(folder, index=DIGESTS) as staging:
            write_json(staging / DIGESTS, digests)
    records = [
        {"file": _file_of(images), "num_images": len(images), "sha256": digests[_file_of(images)]}
        for images in shard_ranges(header.num_images)
    ]
    fields = {"format": FORMAT, "header": asdict(header), "shards": records, "tables": "", "provenance": provenance}
    with write_folder(folder, index=MANIFEST) as staging:
        if tables:
            apart = {name: table.detach().clone() for name, table in tables.items()}  # grids may share one codebook
            fields["tables"] = write_tensors(staging / TABLES, apart)
        write_json(staging / MANIFEST, {**fields, "sha256": digest_of(fields)})
    (folder / DIGESTS).unlink(missing_ok=True)


def _file_of(images: range) -> str:
    return shard_name(images.start // SHARD_SIZE)


def _read_digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each shard that this export, or an earlier run of it, has written; none where nobody can tell."""
    try:
        return read_json(folder / DIGESTS)
    except (InputError, OSError):
        return {}


def _refuse_another_export(path: Path, header: CodeHeader) -> None:
    """Raise `InputError`, naming the difference, where a shard was written under another header."""
    try:
        earlier = json.loads(read_metadata(path)[METADATA])
        different = [name for name, value in asdict(header).items() if earlier[name] != value]
    except Exception:  # damaged, which has many types: it will be made again
        return
    if different:
        raise InputError(
            f"{path.parent} holds unfinished codes that were made with another {different[0]}: choose another `output`"
        )
