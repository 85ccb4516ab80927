"""The code dataset: grids of codes, and everything needed to use them right.

A folder holds `manifest.json` and shards `codes-00000.safetensors`, ..., nothing else. A shard holds the tensors
`codes.0` (m, h, w) in the smallest unsigned type that holds K (`codes.1`, ... where an image has several grids,
coarse to fine) and `labels` (m,) int64. The manifest, written last, makes the folder whole.

Shapes: n images, m images of a shard, b batch, h w code grid, K num_embeddings.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from codegrid.errors import InputError
from codegrid.files import write_folder, write_json
from codegrid.limits import short
from codegrid.tensors import digest_of, read_json, sha256, write_tensors

from .manifest import CodeHeader, check_manifest, shard_name

FORMAT = "codegrid codes 1"
SHARD_SIZE = 8192  # images
MANIFEST = "manifest.json"
LONGEST_HEADER = 2**26  # bytes, of a shard
NUMPY_TYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "I64": np.int64}


class CodeBatch(NamedTuple):
    """Some grids of a data set."""

    codes: torch.Tensor  # (b, h, w) int64
    labels: torch.Tensor | None  # (b,) int64


class CodeShard(NamedTuple):
    """A stretch of a data set, encoded: what a shard is made of."""

    codes: torch.Tensor  # (m, h, w) int64
    labels: torch.Tensor | None  # (m,) int64
    ties: int  # sites where two codebook entries are equally near, but for rounding


class CodeDataset:
    """A code dataset, read through a memory map.

    Raises `InputError` where the folder is missing, incomplete or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        self.header = CodeHeader(**manifest["header"])
        self._shards = [_check_shard(self.folder, record, self.header) for record in manifest["shards"]]
        self._firsts = np.cumsum([0] + [len(shard["codes.0"]) for shard in self._shards])

    def __len__(self) -> int:
        return self.header.num_images

    def __getitem__(self, index: int) -> CodeBatch:
        return CodeBatch(*(None if part is None else part[0] for part in self.__getitems__([index])))

    def __getitems__(self, indices: Sequence[int]) -> CodeBatch:
        chosen = np.asarray(indices, dtype=np.int64)
        shard_of = np.searchsorted(self._firsts, chosen, side="right") - 1
        codes = np.empty((len(chosen), *self.grid_shape), dtype=np.int64)
        labels = np.empty(len(chosen), dtype=np.int64)
        for number in np.unique(shard_of):
            here = shard_of == number
            rows = chosen[here] - self._firsts[number]
            codes[here] = self._shards[number]["codes.0"][rows]
            if self.header.classes:
                labels[here] = self._shards[number]["labels"][rows]
        return CodeBatch(torch.from_numpy(codes), torch.from_numpy(labels) if self.header.classes else None)

    def identity(self) -> str:
        """A digest that tells two code datasets apart."""
        return digest_of(asdict(self.header))

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(h, w) of the first grid."""
        return self.header.grids[0]["height"], self.header.grids[0]["width"]

    @property
    def num_embeddings(self) -> int:
        """K of the first grid."""
        return self.header.grids[0]["num_embeddings"]

    @property
    def classes(self) -> list[str]:
        """The name of each label."""
        return self.header.classes

    @property
    def labels(self) -> np.ndarray | None:
        """(n,) int64."""
        return np.concatenate([shard["labels"] for shard in self._shards]) if self.header.classes else None


def shard_ranges(num_images: int) -> list[range]:
    """The images of each shard, in order."""
    return [range(first, min(first + SHARD_SIZE, num_images)) for first in range(0, num_images, SHARD_SIZE)]


def missing_ranges(folder: str | Path, header: CodeHeader) -> list[range]:
    """The images of each shard that an export into the folder, perhaps a killed one, has not left whole.

    Raises `InputError` where the folder holds anything but shards of the same export.
    """
    folder = Path(folder)
    finished = _look_into(folder, header)
    return [images for images in shard_ranges(header.num_images) if _shard_path(folder, images) not in finished]


def write_codes(
    folder: str | Path, header: CodeHeader, missing: list[range], shards: Iterable[CodeShard], provenance: dict
) -> int:
    """Write the missing shards as they come, then the manifest; returns the ties of all shards together.

    Args:
        missing: what `missing_ranges` found.
        shards: the shard of each missing range, in turn.
        provenance: facts about the export, for the manifest.
    """
    folder = Path(folder)
    for images, shard in zip(missing, shards, strict=True):
        path = _shard_path(folder, images)
        with write_folder(folder, index=path.name) as staging:
            _write_shard(staging / path.name, shard, header)
    records, ties = [], 0
    for images in shard_ranges(header.num_images):
        path = _shard_path(folder, images)
        records.append({"file": path.name, "num_images": len(images), "sha256": sha256(_map_bytes(path))})
        metadata, tensors = _map_shard(path)
        fault = _fault_of(tensors, len(images), header)
        if fault:
            raise InputError(f"{path} {fault}: remove it and run the same command again")
        ties += int(metadata["ties"])  # from the file: an earlier run may have written it
    fields = {
        "format": FORMAT, "header": asdict(header), "shards": records, "provenance": {**provenance, "ties": ties},
    }  # fmt: skip
    with write_folder(folder, index=MANIFEST) as staging:
        write_json(staging / MANIFEST, {**fields, "sha256": digest_of(fields)})
    return ties


def smallest_dtype(num_embeddings: int) -> np.dtype:
    """The smallest unsigned type that holds the codes 0 ... K-1."""
    return np.min_scalar_type(num_embeddings - 1)


def _shard_path(folder: Path, images: range) -> Path:
    return folder / shard_name(images.start // SHARD_SIZE)


def _look_into(folder: Path, header: CodeHeader) -> set[Path]:
    """The whole shards in the folder; InputError where it holds anything but shards of the same export."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: --output must be a folder")
    finished = set()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if not path.name.startswith("codes-"):
            raise InputError(f"{folder} already holds other files ({path.name}): choose a new or empty --output")
        earlier = _finished_header(path)
        different = [name for name, value in asdict(header).items() if earlier and earlier.get(name) != value]
        if different:
            raise InputError(
                f"{folder} holds unfinished codes that were made with another {different[0]}: choose another --output"
            )
        if earlier and earlier["ties"] is not None:  # versions that did not count them left shards that must be redone
            finished.add(path)
    return finished


def _write_shard(path: Path, shard: CodeShard, header: CodeHeader) -> None:
    codes = shard.codes.numpy().astype(smallest_dtype(header.grids[0]["num_embeddings"]))
    tensors = {"codes.0": torch.from_numpy(codes)}
    if shard.labels is not None:
        tensors["labels"] = shard.labels
    checksum = _digest_of_tensors({name: tensor.numpy() for name, tensor in tensors.items()})
    metadata = {"header": json.dumps(asdict(header)), "ties": str(shard.ties), "sha256": checksum}
    write_tensors(path, tensors, metadata)


def _finished_header(path: Path) -> dict | None:
    """The header under which a sound shard was written, and its `ties`; None where there is none, or it is damaged."""
    try:
        metadata, tensors = _map_shard(path)
        ties = int(metadata["ties"]) if "ties" in metadata else None
        sound = metadata["sha256"] == _digest_of_tensors(tensors)
        return {**json.loads(metadata["header"]), "ties": ties} if sound else None
    except Exception:  # damage has many types
        return None


def _digest_of_tensors(tensors: dict[str, np.ndarray]) -> str:
    return digest_of([[name, sha256(np.ascontiguousarray(tensors[name]))] for name in sorted(tensors)])


def is_whole(folder: str | Path) -> bool:
    """Whether an export into the folder was finished."""
    return (Path(folder) / MANIFEST).is_file()


def read_manifest(folder: str | Path) -> dict:
    """The checked manifest of a code dataset."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give the folder of exported codes")
    if not is_whole(folder):
        raise InputError(f"{folder} is not a whole code dataset (it has no {MANIFEST}): run its export again")
    manifest = read_json(folder / MANIFEST)
    expected = manifest.pop("sha256", None)
    if expected != digest_of(manifest):
        raise InputError(
            f"{folder / MANIFEST} is damaged (its SHA-256 is not the recorded one): export the codes again"
        )
    if manifest.get("format") != FORMAT:
        raise InputError(f"{folder} has the format {short(manifest.get('format'))}, but this version reads {FORMAT!r}")
    try:
        check_manifest(manifest)  # the digest is sound, but anyone can compute it
    except ValueError as error:
        raise InputError(f"{folder / MANIFEST}: {error}; export the codes again") from error
    return manifest


def _check_shard(folder: Path, record: dict, header: CodeHeader) -> dict[str, np.ndarray]:
    """Map the shard that a record of the manifest names, once its bytes, shapes and codes are as they must be."""
    path = folder / record["file"]
    if not path.is_file():
        raise InputError(f"{folder} is incomplete: it holds no {path.name}; export the codes again")
    if sha256(_map_bytes(path)) != record["sha256"]:
        raise InputError(f"{path} is damaged (its SHA-256 is not the recorded one): export the codes again")
    tensors = _map_shard(path)[1]
    fault = _fault_of(tensors, record["num_images"], header)
    if fault:
        raise InputError(f"{path} {fault}: export the codes again")
    return tensors


def _fault_of(tensors: dict[str, np.ndarray], length: int, header: CodeHeader) -> str:
    """Why the tensors of a shard cannot be `length` of the header's grids; empty where they can."""
    grid, num_classes = header.grids[0], len(header.classes)
    codes, labels = tensors.get("codes.0"), tensors.get("labels")
    if codes is None or codes.shape != (length, grid["height"], grid["width"]):
        return "does not hold what the manifest says"
    if codes.dtype != smallest_dtype(grid["num_embeddings"]) or codes.max() >= grid["num_embeddings"]:
        return f"holds {codes.dtype} numbers that are no codes from 0 to {grid['num_embeddings'] - 1}"
    if num_classes and (labels is None or labels.shape != (length,) or labels.dtype != np.int64):
        return "does not hold the labels that the manifest promises"
    if num_classes and not 0 <= labels.min() <= labels.max() < num_classes:
        return f"holds the labels {labels.min()} to {labels.max()}, of {num_classes} classes"
    return ""


def _map_bytes(path: Path) -> np.ndarray:
    if not path.stat().st_size:
        raise InputError(f"{path} is damaged (it is empty): export the codes again")
    return np.memmap(path, dtype=np.uint8, mode="r")


def _map_shard(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and memory-mapped tensors of a safetensors file: 8 bytes of length, a JSON header, the data."""
    try:
        content = _map_bytes(path)
        length = int.from_bytes(content[:8].tobytes(), "little")
        if length > min(len(content) - 8, LONGEST_HEADER):
            raise ValueError("the header is longer than the file")
        data = content[8 + length :]
        entries = json.loads(content[8 : 8 + length].tobytes())
        metadata = entries.pop("__metadata__", {})
        tensors = {}
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= len(data):
                raise ValueError(f"{name} lies outside of the file")
            tensors[name] = data[begin:end].view(NUMPY_TYPES[entry["dtype"]]).reshape(entry["shape"])
        return metadata, tensors
    except (InputError, OSError):
        raise
    except Exception as error:  # a stranger's header can be wrong in any way
        raise InputError(f"{path} is not a shard of codes: export the codes again") from error
