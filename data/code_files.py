"""Codes as plain arrays in an npz file, and codes to decode, from such a file, a Parquet file or a code dataset.

Shapes: n grids, m grids of a shard, h w code grid, K num_embeddings.
"""

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codegrid.codes import NO_LABEL
from codegrid.errors import InputError
from codegrid.limits import MOST_CLASSES
from codegrid.tensors import digest_of, sha256

from .codes import CodeBatch, CodeDataset, CodeHeader, CodeShard
from .npy_stream import open_array
from .parquet import read_parquet
from .sources import read_npz

PLAIN = (".npz", ".parquet")


class CodeArray:
    """Codes that came as plain arrays, with the calls of `CodeDataset` that decoding needs."""

    def __init__(self, codes: np.ndarray, labels: np.ndarray | None) -> None:
        self.codes, self.labels = codes, labels

    def __len__(self) -> int:
        return len(self.codes)

    def __getitems__(self, indices: Sequence[int]) -> CodeBatch:
        return CodeBatch(torch.from_numpy(self.codes[np.asarray(indices)].astype(np.int64)), None)

    def identity(self) -> str:
        """A digest that tells two arrays apart."""
        arrays = [array for array in (self.codes, self.labels) if array is not None]
        return digest_of(
            [[list(array.shape), str(array.dtype), sha256(np.ascontiguousarray(array))] for array in arrays]
        )


def open_codes(source: str, tokenizer: Any) -> CodeDataset | CodeArray:
    """Codes that this tokenizer can decode; `InputError` where it is another's, or they are no codes of its."""
    if Path(source).suffix not in PLAIN:
        dataset = CodeDataset(source)
        _check_fingerprint(source, dataset.header.tokenizer_fingerprint, tokenizer)
        grid, num_embeddings = tokenizer.grid_shape, tokenizer.num_embeddings
        if dataset.grid_shape != grid or dataset.num_embeddings > num_embeddings:
            raise InputError(
                f"{source} holds {'×'.join(map(str, dataset.grid_shape))} codes out of {dataset.num_embeddings}, but "
                f"this tokenizer has {'×'.join(map(str, grid))} out of {num_embeddings}: export the codes again"
            )
        return dataset
    if not Path(source).is_file():
        raise InputError(f"no file {source}: give an .npz or .parquet file of codes, or a folder of exported codes")
    if Path(source).suffix == ".parquet":
        arrays, fingerprint = read_parquet(Path(source))
        if fingerprint is not None:
            _check_fingerprint(source, fingerprint, tokenizer)
    else:
        arrays = read_npz(Path(source))
    return _check_arrays(source, arrays, tokenizer)


def _check_fingerprint(source: str, fingerprint: str, tokenizer: Any) -> None:
    if fingerprint != tokenizer.fingerprint():
        raise InputError(
            f"{source} holds codes of another tokenizer (the fingerprints differ): give the one that made them"
        )


def _check_arrays(source: str, arrays: dict[str, np.ndarray], tokenizer: Any) -> CodeArray:
    """Plain arrays, once they are grids that this tokenizer can decode, and labels of them."""
    codes, labels = arrays.get("codes", arrays.get("arr_0")), arrays.get("labels", arrays.get("arr_1"))
    if codes is None or codes.ndim != 3 or codes.dtype.kind not in "iu" or not codes.size:
        raise InputError(f"{source}: `codes` must be whole numbers of shape (n, h, w), at least one grid")
    if codes.shape[1:] != tokenizer.grid_shape:
        shape, needed = ("×".join(map(str, grid)) for grid in (codes.shape[1:], tokenizer.grid_shape))
        raise InputError(f"{source}: grids of {shape} codes, but this tokenizer makes pictures of {needed}")
    if codes.min() < 0 or codes.max() >= tokenizer.num_embeddings:
        outlier = codes.min() if codes.min() < 0 else codes.max()
        raise InputError(f"{source}: code {outlier}, but the codebook has entries 0 to {tokenizer.num_embeddings - 1}")
    if labels is not None and (labels.shape != (len(codes),) or labels.dtype.kind not in "iu"):
        raise InputError(f"{source}: `labels` must hold one whole number for each of {len(codes)} grids")
    if labels is not None and not NO_LABEL <= int(labels.min()) <= int(labels.max()) < MOST_CLASSES:
        outlier = int(labels.min()) if labels.min() < NO_LABEL else int(labels.max())
        raise InputError(f"{source}: label {outlier}: labels must be from 0, or -1 for none, to {MOST_CLASSES - 1}")
    return CodeArray(codes, labels)


def write_npz(path: Path, header: CodeHeader, shards: Iterable[CodeShard]) -> int:
    """Write `codes` (n, h, w) int64 and, if there are any, `labels` (n,) as the shards come; returns their ties."""
    grid, labels, ties = header.grids[0], [], 0
    shape = (header.num_images, grid["height"], grid["width"])
    # the quickest level: the usual one takes a tenth of the encoding time, for a file smaller by a seventh
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with open_array(archive, "codes", np.int64, shape) as file:
            for shard in shards:
                file.write(shard.codes.numpy())
                labels.append(shard.labels)
                ties += shard.ties
        if header.classes:
            with open_array(archive, "labels", np.int64, (header.num_images,)) as file:
                file.write(torch.cat(labels).numpy())
    return ties
