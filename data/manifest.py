"""The manifest of a code dataset: its header, and the checks that it must pass, whoever wrote it.

Shapes: n images, v views, *shape the sites of a grid, K num_embeddings.
"""

import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from codegrid.codes import Grid, Layout, make_layout
from codegrid.errors import InputError
from codegrid.limits import (
    MAX_CLASSES,
    MAX_SIDE,
    MAX_VIEWS,
    Range,
    Seed,
    check_fields,
    check_name,
    check_whole,
    is_list_of,
    short,
)
from codegrid.tensors import digest_of, read_json

FORMAT = "codegrid codes 2"
FORMER = "codegrid codes 1"
MANIFEST = "manifest.json"
TABLES = "tables.safetensors"

KINDS = ("int", "float", "text")  # of columns
LABELS = "labels"
LABEL_COLUMN = {"kind": "int", "shape": []}
FILES = "files"  # a column of paths, for people: what each row was made from
FILE_COLUMN = {"kind": "text", "shape": []}
CAPTIONS = "captions"  # a column of texts, as many for each row: empty ones after its own
ACTIONS = "actions"  # a column of numbers: the action taken once a frame has been seen, which leads to the next one
EPISODE, FRAME = "episode", "frame"  # columns of numbers: the recording that a frame belongs to, and its place in it
FILES_JSON = "files.json"  # a list of such paths, beside images
COLUMN_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
TAKEN = ("codes", "label", "views")  # names that codes, labels and `views` have in files of other formats
MAX_IMAGES = 10**12
MAX_GRIDS = MAX_COLUMNS = 1000
MAX_COLUMN_AXES = 8
MAX_COLUMN_SIDE = 2**24
VIEWS = ("views", "shift", "flip", "view_seed")  # fields of a header, and settings
RECORD = {"file": str, "num_images": int, "sha256": str}  # of a shard


@dataclass(frozen=True)
class CodeHeader:
    """The header of a code dataset, as JSON values.

    Args:
        num_images: n.
        grids: shape and num_embeddings of each grid, coarse to fine. A `Layout` is converted.
        classes: the name of each label; empty if there are no labels.
        split: `train`, `test`, `all` for both, `sampled`, or empty if unknown.
        tokenizer_fingerprint: of the tokenizer that made the codes; empty if unknown.
        source: fingerprint of the images.
        views: v, encodings of each image: of the image as it is, and of v-1 others made from it. The rows i·v ...
            i·v + v-1 of codes belong to image i.
        shift, flip, view_seed: how the other views were made, as for `Views`, if that is known.
        columns: kind and shape of what each image has besides its codes, by name: `{"kind": "int", "shape": []}`. A
            column `labels` is added if there are classes.

    Raises `InputError` if a value is out of range.
    """

    num_images: Annotated[int, Range(1, MAX_IMAGES)]
    grids: list[dict[str, Any]]
    classes: list[str]
    split: str
    tokenizer_fingerprint: str
    source: str
    views: Annotated[int, Range(1, MAX_VIEWS)] = 1
    shift: Annotated[int, Range(0, MAX_SIDE)] = 0
    flip: bool = False
    view_seed: Seed = 0
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.grids, list | tuple) or not 1 <= len(self.grids) <= MAX_GRIDS:
            raise InputError(f"`grids` {short(self.grids)}: it must be a list of 1 to {MAX_GRIDS} grids")
        if not is_list_of(self.classes, str) or len(self.classes) > MAX_CLASSES:
            raise InputError(f"`classes` {short(self.classes)}: it must be a list of at most {MAX_CLASSES:,} names")
        object.__setattr__(self, "grids", [_grid_of(grid).as_json() for grid in self.grids])
        object.__setattr__(self, "columns", _columns_of(self.columns, bool(self.classes)))

    @property
    def layout(self) -> Layout:
        """The grids, coarse to fine."""
        return make_layout(self.grids)

    @property
    def num_rows(self) -> int:
        """n·v: the views of all images."""
        return self.num_images * self.views

    @property
    def how_viewed(self) -> dict[str, Any]:
        """The number of views and how they were made, by the names of the fields, as far as that is known.

        Empty if there is only the image itself.
        """
        known = {name: getattr(self, name) for name in VIEWS if self.views > 1}
        return {name: value for name, value in known.items() if value}


def shard_name(number: int) -> str:
    """Return the file name of a shard, the only one that a manifest may give."""
    return f"codes-{number:05d}.safetensors"


def is_whole(folder: str | Path) -> bool:
    """Return whether an export into the folder was finished."""
    return (Path(folder) / MANIFEST).is_file()


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the checked manifest of a code dataset.

    Raises `InputError` if the folder is missing, unfinished, damaged or in another format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give the folder of exported codes")
    if not is_whole(folder):
        raise InputError(f"{folder} is not a complete code dataset (it has no {MANIFEST}): run its export again")
    path = folder / MANIFEST
    manifest = read_json(path)
    if manifest.pop("sha256", None) != digest_of(manifest):
        raise InputError(f"{path} is damaged (its SHA-256 is not the recorded one): export the codes again")
    if manifest.get("format") == FORMER:
        raise InputError(f"{folder} was made by codegrid 0.1: export the codes again")
    if manifest.get("format") != FORMAT:
        raise InputError(f"{folder} has the format {short(manifest.get('format'))}, but this version reads {FORMAT!r}")
    try:
        check_manifest(manifest)  # the digest matches, but anyone can compute it
    except InputError as error:
        raise InputError(f"{path}: {error}; export the codes again") from error
    return manifest


def check_manifest(manifest: dict[str, Any]) -> None:
    """Raise `InputError` if a manifest lacks a field, or a value is invalid."""
    if not isinstance(manifest.get("provenance"), dict):
        raise InputError(f"`provenance` {short(manifest.get('provenance'))}: it must be an object")
    if not isinstance(manifest.get("tables"), str):
        raise InputError(f"`tables` {short(manifest.get('tables'))}: it must be the SHA-256 of {TABLES}, or empty")
    header = parse_header(manifest.get("header"))
    shards: Any = manifest.get("shards")
    if not is_list_of(shards, dict):
        raise InputError(f"`shards` {short(shards)}: it must be a list of objects")
    for number, record in enumerate(shards):
        if {name: type(value) for name, value in record.items()} != RECORD:
            raise InputError(f"shard {number} {short(record)}: it must have file, num_images and sha256")
        if record["file"] != shard_name(number):
            raise InputError(f"`file` {short(record['file'])}: shard {number} must be {shard_name(number)}")
        check_whole("num_images", record["num_images"], 1, MAX_IMAGES)
    total = sum(record["num_images"] for record in shards)
    if total != header.num_images:
        raise InputError(f"its shards hold {total} images, not {header.num_images}")


def parse_header(value: object) -> CodeHeader:
    """Return the header with these JSON values. Raises `InputError` if a field is missing, or a value is invalid."""
    names = [field.name for field in fields(CodeHeader)]
    if not isinstance(value, dict) or value.keys() != set(names):
        raise InputError(f"`header` {short(value)}: it must have {', '.join(names)}")
    header = CodeHeader(**value)
    if asdict(header) != value:
        raise InputError(f"`columns` {short(value['columns'])}: `{LABELS}` is missing, though there are classes")
    return header


def _grid_of(value: Any) -> Grid:
    if isinstance(value, Grid):
        return value
    is_complete = isinstance(value, dict) and value.keys() == {"shape", "num_embeddings"}
    if not is_complete or not is_list_of(value["shape"], int):
        raise InputError(f"grid {short(value)}: it must have a shape, a list, and num_embeddings")
    return Grid(**value)


def _columns_of(columns: Any, with_classes: bool) -> dict[str, dict[str, Any]]:
    """Return the columns as they are written, including that of the labels."""
    if not isinstance(columns, dict) or len(columns) > MAX_COLUMNS:
        raise InputError(f"`columns` {short(columns)}: it must be an object of at most {MAX_COLUMNS} columns")
    if with_classes and LABELS not in columns:
        columns = {LABELS: LABEL_COLUMN, **columns}
    for name, column in columns.items():
        if not COLUMN_NAME.fullmatch(name) or name in TAKEN:
            words = f"up to 64 lower-case letters, digits and underscores, and none of {', '.join(TAKEN)}"
            raise InputError(f"column {short(name)}: its name must be {words}")
        shape = column.get("shape") if isinstance(column, dict) and column.keys() == {"kind", "shape"} else None
        if not isinstance(shape, list | tuple):
            raise InputError(f"column {name} {short(column)}: it must have a kind and a shape, a list")
        check_name("kind", column["kind"], KINDS)
        check_whole("column axes", len(shape), 0, MAX_COLUMN_AXES)
        for side in shape:
            check_whole("column shape", side, 1, MAX_COLUMN_SIDE)
    columns = {name: {**column, "shape": list(column["shape"])} for name, column in columns.items()}
    if columns.get(LABELS) != (LABEL_COLUMN if with_classes else None):
        words = "a column `labels` of one whole number is needed" if with_classes else "labels need names of classes"
        raise InputError(f"column {LABELS} {short(columns.get(LABELS))}: {words}")
    return columns
