"""Image data sets of the Hugging Face hub, or of a local folder that `datasets` can read, as uint8 images.

`hf:owner/name` is downloaded (`hf:owner/name:config` where it has several configurations); `hf:./folder` stays on this
machine. No code that comes with a data set is ever run.
"""

import io
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from codegrid.errors import InputError, import_extra, reason_of
from codegrid.file_names import printable
from codegrid.limits import MAX_CLASSES
from codegrid.tensors import digest_of, sha256

from .folder import FolderImages, affordable
from .pictures import Unreadable
from .splits import split_indices

PREFIX = "hf:"
LOCAL = re.compile(r"[.~/\\]|[A-Za-z]:[/\\]")  # how a path begins, and no name on the hub
TESTS = ("test", "validation", "valid", "val")
IMAGES, LABELS = ("image", "img"), ("label", "labels", "fine_label")  # preferred where there are several


def public_name(dataset: str) -> str:
    """Return the name of a data set for those who were not there: of a local folder the last part alone."""
    name = dataset.removeprefix(PREFIX)
    is_local = dataset.startswith(PREFIX) and LOCAL.match(name)
    return PREFIX + re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_local else dataset


class HubPicture:
    """One picture of a data set: read when it is opened, and named in messages."""

    def __init__(self, column: Any, row: int, name: str) -> None:
        self.column, self.row, self.name = column, row, name

    def __str__(self) -> str:
        return f"{self.name}, picture {self.row}"

    def open(self) -> io.BytesIO:
        """Return its bytes, as they are encoded."""
        (value,) = self.column[self.row].values()
        content, path = (value, None) if isinstance(value, bytes) else _parts_of(value)
        if content is None and (path is None or not Path(path).is_file()):
            raise Unreadable(f"{self} is missing: fix the data set, or remove the row")
        return io.BytesIO(content if content is not None else Path(str(path)).read_bytes())


def _parts_of(value: dict | None) -> tuple[bytes | None, str | None]:
    return (value.get("bytes"), value.get("path")) if value else (None, None)


class HubPictures:
    """The pictures of some rows of a column."""

    def __init__(self, column: Any, name: str, rows: np.ndarray) -> None:
        self.column, self.name, self.rows = column, name, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> HubPicture:
        return HubPicture(self.column, int(self.rows[index]), self.name)

    def sizes(self) -> np.ndarray:
        """Return (n,) bytes of each encoded picture, without reading one."""
        import pyarrow.compute as pc

        found = []
        for chunk in self.column.data.column(0).chunks:
            of_structs = hasattr(chunk, "field")
            lengths = pc.binary_length(chunk.field("bytes") if of_structs else chunk)
            sizes = lengths.cast("int64").fill_null(-1).to_numpy(zero_copy_only=False).copy()
            for row in np.flatnonzero(sizes < 0) if of_structs else ():  # a file's name in place of its bytes
                path = _parts_of(chunk[int(row)].as_py())[1]
                sizes[row] = Path(path).stat().st_size if path and Path(path).is_file() else -1
            found.append(sizes)
        return np.concatenate(found)[self.rows]


class HubImages(FolderImages):
    """Pictures of a data set that are decoded when they are asked for."""

    paths: HubPictures

    @cached_property
    def files(self) -> None:
        """Of no file on this machine."""
        return None

    def _paths_of(self, numbers: np.ndarray) -> HubPictures:
        return HubPictures(self.paths.column, self.paths.name, self.paths.rows[numbers])

    def fingerprint(self) -> str:
        """Return a digest of the sizes of the encoded pictures, the labels and some pictures."""
        sizes = self.paths.sizes()
        some = [sha256(self.paths[i].open().getvalue()) for i in affordable(sizes.clip(0))]
        labels = "none" if self.labels is None else sha256(self.labels.numpy().tobytes())
        return digest_of([sha256(sizes), some, labels, list(self.image_size), self.in_channels, self.classes])


def load_hub(
    dataset: str, data_root: Path | None, split: str, size: tuple[int, int] | None, channels: int | None
) -> HubImages:
    """Find the `train` or `test` part of `hf:NAME`; no picture is decoded yet.

    It is downloaded below `data_root`, by default to where `datasets` keeps all.

    A part called validation serves as `test` where there is none; otherwise every tenth picture of each class does.
    """
    parts = _load(dataset, data_root)
    test = next((name for name in TESTS if name in parts), "")
    whole = not test or "train" not in parts
    part = parts["train" if "train" in parts else next(iter(parts))] if whole or split == "train" else parts[test]
    name = dataset if whole else f"{dataset}, {split}"
    column = _image_column(dataset, part)
    labels, classes = _labels(name, part)
    rows = split_indices(labels, len(part), split) if whole else np.arange(len(part))
    return HubImages(
        Path(), HubPictures(column, dataset, rows), None if labels is None else labels[rows], classes, size, channels
    )


def _load(dataset: str, cache: Path | None) -> dict[str, Any]:
    """The parts of a data set, by name."""
    datasets = import_extra("datasets", f"`dataset` {dataset}", "hub")
    name = dataset.removeprefix(PREFIX)
    local = bool(LOCAL.match(name))
    if not name or (local and not Path(name).expanduser().is_dir()):
        raise InputError(f"no folder {name}: give the folder of a data set, as hf:./folder, or hf:owner/name")
    if not local and Path(name).exists():  # `datasets` would take it for what is meant
        raise InputError(f"{dataset} may be on the hub, and {name} is here: write hf:./{name}, or start elsewhere")
    source, _, config = (str(Path(name).expanduser().resolve()), "", "") if local else name.partition(":")
    try:
        parts = datasets.load_dataset(source, config or None, cache_dir=None if cache is None else str(cache))
    except Exception as error:  # what is said of names, networks and files has many types
        reason = reason_of(error)
        remedy = "fix its files" if local else "check the name and the network, or give a local folder as hf:./folder"
        raise InputError(f"cannot load {dataset} ({reason}): {remedy}") from error
    if not parts:
        raise InputError(f"{dataset} holds no data: choose another one")
    return dict(parts)


def _image_column(dataset: str, part: Any) -> Any:
    """The column of encoded pictures, alone."""
    from datasets import Image, Value

    features = part.features
    names = [name for name, feature in features.items() if isinstance(feature, Image)]
    if not names and len(features) == 1:  # encoded pictures that no one called so
        names = [name for name, kind in features.items() if kind == Value("binary") or _is_encoded(kind)]
    preferred = [name for name in IMAGES if name in names] or names
    if not names or (len(names) > 1 and preferred == names):
        found = f"several columns of images ({', '.join(names)})" if names else f"none in {', '.join(features)}"
        raise InputError(f"{dataset} must have one column of images, and has {found}: choose another data set")
    column = part.select_columns([preferred[0]])
    kind = features[preferred[0]]
    return column.cast_column(preferred[0], Image(decode=False)) if isinstance(kind, Image) else column


def _is_encoded(kind: object) -> bool:
    """Whether a feature is what `datasets` keeps of an image."""
    return isinstance(kind, dict) and "bytes" in kind


def _labels(name: str, part: Any) -> tuple[np.ndarray | None, list[str]]:
    """(n,) int64 and the names of the classes; None and no names where there are no labels, or all are hidden."""
    from datasets import ClassLabel

    columns = [column for column, feature in part.features.items() if isinstance(feature, ClassLabel)]
    column = next((column for column in (*LABELS, *columns) if column in columns), None)
    if column is None:
        return None, []
    labels = part.data.column(column).cast("int64").fill_null(-1).to_numpy()
    classes = list(map(printable, part.features[column].names))
    if (labels == -1).all():
        return None, []
    if len(classes) > MAX_CLASSES or not 0 <= labels.min() <= labels.max() < len(classes):
        raise InputError(f"{name}: some of its labels are missing, or no classes of its {len(classes)}: fix the data")
    return labels, classes
