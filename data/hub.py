"""Image data sets from the Hugging Face hub, or from a local folder that `datasets` can read, as uint8 images.

`hf:owner/name` is downloaded (`hf:owner/name:config` if it has several configurations); `hf:./folder`, or
`hf:./file.parquet`, is local. No code that comes with a data set is ever run, and no file outside of it is read,
wherever its paths and links lead.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codegrid.errors import InputError, import_extra, reason_of
from codegrid.file_names import printable
from codegrid.files import is_below
from codegrid.hub import HUB_PREFIX
from codegrid.limits import MAX_CLASSES, short
from codegrid.tensors import digest_of, sha256

from .captions import MAX_CAPTIONS, OF_TEXTS, Texts
from .folder import FolderImages
from .images import Size, affordable
from .names import is_local
from .pictures import Unreadable
from .splits import split_indices

TESTS = ("test", "validation", "valid", "val")
IMAGES, LABELS = ("image", "img"), ("label", "labels", "fine_label")  # preferred if there are several


class HubPicture:
    """One picture of a data set, read when it is opened; `str()` names it in messages."""

    def __init__(self, pictures: "HubPictures", row: int) -> None:
        self.pictures, self.row = pictures, row

    def __str__(self) -> str:
        return f"{self.pictures.name}, picture {self.row}"

    def open(self) -> io.BytesIO:
        """Return the encoded bytes of the picture.

        Raises `Unreadable` if they are missing, or in a file outside of the data set.
        """
        (value,) = self.pictures.column[self.row].values()
        parts: dict[str, Any] = {"bytes": value} if isinstance(value, bytes) else value or {}
        if parts.get("bytes") is not None:
            return io.BytesIO(parts["bytes"])
        name = parts.get("path")
        path = name and self.pictures.find(name)
        if not path:
            outside = f" ({name} is not a file of the data set)" if name else ""
            raise Unreadable(f"{self} is missing{outside}: fix the data set, or remove the row")
        return io.BytesIO(path.read_bytes())


class HubPictures:
    """Pictures in some rows of a column.

    Args:
        column: `datasets.Dataset` with a column of encoded pictures.
        name: the name of the data set, for messages.
        rows: (n,) indices of the rows.
        folders: where files of the data set may be. A relative path starts at the first of them.
        table: the `datasets.Dataset` with all columns.
    """

    def __init__(self, column: Any, name: str, rows: np.ndarray, folders: Sequence[Path], table: Any = None) -> None:
        self.column, self.name, self.rows, self.folders, self.table = column, name, rows, folders, table

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> HubPicture:
        return HubPicture(self, int(self.rows[index]))

    def find(self, name: str) -> Path | None:
        """Return the file of the data set that a row names; None if the data set has no such file."""
        path = self.folders[0] / name
        try:
            is_ours = any(is_below(path, folder) for folder in self.folders)
            return path if is_ours and path.is_file() else None
        except (OSError, ValueError):  # the name is one that no file can have
            return None

    def sizes(self) -> np.ndarray:
        """Return the sizes (n,) in bytes of the encoded pictures, without reading any."""
        import pyarrow.compute as pc

        found = []
        for chunk in self.column.data.column(0).chunks:
            of_structs = hasattr(chunk, "field")
            lengths = pc.binary_length(chunk.field("bytes") if of_structs else chunk)
            sizes = lengths.cast("int64").fill_null(-1).to_numpy(zero_copy_only=False).copy()
            for row in np.flatnonzero(sizes < 0) if of_structs else ():  # a file's name in place of its bytes
                name = (chunk[int(row)].as_py() or {}).get("path")
                path = name and self.find(name)
                sizes[row] = path.stat().st_size if path else -1
            found.append(sizes)
        return np.concatenate(found)[self.rows]


class HubImages(FolderImages):
    """Pictures of a data set on the hub, decoded on demand."""

    paths: HubPictures
    files = None  # the pictures are not files of this machine

    def _paths_of(self, numbers: np.ndarray) -> HubPictures:
        return HubPictures(self.paths.column, self.paths.name, self.paths.rows[numbers], self.paths.folders)

    def fingerprint(self) -> str:
        """Return a digest of the sizes of the encoded pictures, the labels and some pictures."""
        sizes = self.paths.sizes()
        some = [sha256(self.paths[i].open().getvalue()) for i in affordable(sizes.clip(0))]
        labels = "none" if self.labels is None else sha256(self.labels.numpy().tobytes())
        form = [list(self.image_size), self.in_channels, self.classes]
        return digest_of([sha256(sizes), some, labels, *form, *self.described()])


def load_hub(dataset: str, data_root: Path | None, split: str, size: Size | None, channels: int | None) -> HubImages:
    """Find the `train` or the `test` part of `hf:NAME`, or both as `all`; no picture is decoded yet.

    It is downloaded below `data_root`, by default to the cache of `datasets`.

    If there is no test part, a validation part serves as `test`; without either, some of the pictures are held out.
    """
    parts, folders = _load(dataset, data_root)
    test = next((name for name in TESTS if name in parts), "")
    whole = not test or "train" not in parts
    part = parts["train" if "train" in parts else next(iter(parts))] if whole or split == "train" else parts[test]
    if split == "all" and not whole:
        part = import_extra("datasets", f"`dataset` {dataset}", "hub").concatenate_datasets([parts["train"], part])
    name = dataset if whole else f"{dataset}, {split}"
    column = _image_column(dataset, part)
    labels, classes = _labels(name, part, list(parts.values()))
    rows = split_indices(labels, len(part), split) if whole else np.arange(len(part))
    found = HubPictures(column, dataset, rows, folders, part)
    images = HubImages(Path(), found, None if labels is None else labels[rows], classes, size, channels)
    of_texts = next((name for name in OF_TEXTS if name in part.features and _holds_texts(part.features[name])), None)
    if of_texts is not None and (texts := read_column(dataset, found, of_texts)) and any(texts):
        images.captions = texts
    return images


def read_column(dataset: str, pictures: HubPictures, name: str) -> list[Texts]:
    """Return the texts of each picture in a column of texts, or of lists of them: the first MAX_CAPTIONS.

    Raises `InputError` if there is no such column.
    """
    features = pictures.table.features
    if name not in features or not _holds_texts(features[name]):
        others = ", ".join(other for other, kind in features.items() if _holds_texts(kind)) or "none"
        raise InputError(f"`captions` {short(name)}: {dataset} has no such column of texts; it has {others}")
    values = pictures.table.data.column(name).take(pictures.rows).to_pylist()
    rows = ([value] if isinstance(value, str) else value or [] for value in values)
    each = (dict.fromkeys(" ".join(text.split()) for text in row if text and text.strip()) for row in rows)
    return [tuple(texts)[:MAX_CAPTIONS] for texts in each]


def _holds_texts(kind: Any) -> bool:
    """Return whether a column holds texts, or lists of texts."""
    inner = kind[0] if isinstance(kind, list) and kind else getattr(kind, "feature", kind)
    return getattr(inner, "dtype", None) in ("string", "large_string")


def _load(dataset: str, cache: Path | None) -> tuple[dict[str, Any], list[Path]]:
    """Return the parts of a data set, by name, and the folders in which its files may be."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    datasets = import_extra("datasets", f"`dataset` {dataset}", "hub")
    name = dataset.removeprefix(HUB_PREFIX)
    local, path = is_local(dataset), Path(name).expanduser().resolve()
    if not name or (local and not path.exists()):
        raise InputError(f"no folder {name}: give the folder of a data set, as hf:./folder, or hf:owner/name")
    if not local and Path(name).exists():  # `datasets` would read the local one
        raise InputError(f"{dataset} may be on the hub, and {name} is here: write hf:./{name}, or start elsewhere")
    of_hub, _, config = name.partition(":")
    source: dict[str, Any] = {"path": str(path)} if local else {"path": of_hub, "name": config or None}
    if local and path.is_file():
        source = {"path": "parquet", "data_files": str(path)}
    try:
        builder = datasets.load_dataset_builder(**source, cache_dir=None if cache is None else str(cache))
        if local:
            _check_files(dataset, builder, path)
        builder.download_and_prepare()
        parts = builder.as_dataset()
    except InputError:
        raise
    except Exception as error:  # many types: wrong names, networks, files
        remedy = "fix its files" if local else "check the name and the network, or give a local folder as hf:./folder"
        raise InputError(f"cannot load {dataset} ({reason_of(error)}): {remedy}") from error
    if not parts:
        raise InputError(f"{dataset} holds no data: choose another one")
    unpacked = Path(datasets.config.DOWNLOADED_DATASETS_PATH) if cache is None else cache / "downloads"
    if not local:
        path = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=of_hub, repo_type="dataset")
    return dict(parts), [path, unpacked]  # nothing is below a file: its neighbours are not in the data set


def _check_files(dataset: str, builder: Any, folder: Path) -> None:
    """Refuse a folder whose settings name files outside of it; for the hub, `datasets` itself does so."""
    for files in (builder.config.data_files or {}).values():
        for file in map(str, files):
            if "://" in file or not is_below(file, folder):
                raise InputError(f"{dataset} names {file}, which is outside of it: copy it there, or do not trust it")


def _image_column(dataset: str, part: Any) -> Any:
    """Return the column of encoded pictures, alone."""
    from datasets import Image

    features = part.features
    names = [name for name, feature in features.items() if isinstance(feature, Image)]
    if not names:  # encoded pictures, not declared as such
        likely = features if len(features) == 1 else [name for name in IMAGES if name in features]
        names = [name for name in likely if _holds_bytes(features[name])]
    preferred = [name for name in IMAGES if name in names] or names
    if not names or (len(names) > 1 and preferred == names):
        found = f"several columns of images ({', '.join(names)})" if names else f"none in {', '.join(features)}"
        raise InputError(f"{dataset} must have one column of images, but has {found}: choose another data set")
    column = part.select_columns([preferred[0]])
    kind = features[preferred[0]]
    return column.cast_column(preferred[0], Image(decode=False)) if isinstance(kind, Image) else column


def _holds_bytes(kind: Any) -> bool:
    """Return whether a column holds files as bytes, alone or beside their paths."""
    return getattr(kind, "dtype", "") in ("binary", "large_binary") or (isinstance(kind, dict) and "bytes" in kind)


def _labels(name: str, part: Any, parts: Sequence[Any]) -> tuple[np.ndarray | None, list[str]]:
    """Return labels (n,) int64 and class names; None and no names if there are no labels, or all are hidden.

    They are read from a column of the type ClassLabel, or else from one called label that holds names, or numbers
    from 0, in all `parts`.
    """
    from datasets import ClassLabel, Value

    features = part.features
    columns = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    column = next((column for column in (*LABELS, *columns) if column in columns), None)
    if column is None:
        plain = next((column for column in LABELS if isinstance(features.get(column), Value)), None)
        return (
            (None, [])
            if plain is None
            else _plain_labels(part.data.column(plain), [each.data.column(plain) for each in parts])
        )
    labels = part.data.column(column).cast("int64").fill_null(-1).to_numpy()
    classes = list(map(printable, features[column].names))
    if (labels == -1).all():
        return None, []
    if len(classes) > MAX_CLASSES or not 0 <= labels.min() <= labels.max() < len(classes):
        raise InputError(f"{name}: some labels are missing, or not among its {len(classes)} classes: fix the data")
    return labels, classes


def _plain_labels(own: Any, of_all: Sequence[Any]) -> tuple[np.ndarray | None, list[str]]:
    """Return labels (n,) and class names of a column that was not declared to hold them; None if it cannot.

    `of_all` are the columns of all parts, so that classes have the same numbers in each.
    """
    every = {value for column in of_all for value in column.unique().to_pylist()}
    if every and all(isinstance(value, str) for value in every):
        names = sorted(every)
    elif every and all(isinstance(value, int) and 0 <= value < MAX_CLASSES for value in every):
        names = list(range(max(every) + 1))
    else:
        return None, []
    if len(names) > MAX_CLASSES:
        return None, []
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers[value] for value in own.to_pylist()], dtype=np.int64), [printable(str(n)) for n in names]
