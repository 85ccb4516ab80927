"""Code datasets of a stranger, whose digests are sound: anyone can compute them."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from test_codes import CODES, HEADER, export

from codegrid.data import CodeDataset
from codegrid.data.codes import CodeShard, missing_ranges, write_codes
from codegrid.errors import InputError
from codegrid.tensors import digest_of


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("codegrid.data.codes.SHARD_SIZE", 10)
    export(tmp_path / "codes")
    return tmp_path / "codes"


def forge(path, change):
    """Change a manifest in place, and compute its digest again, as any stranger can."""
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    change(manifest)
    path.write_text(json.dumps({**manifest, "sha256": digest_of(manifest)}))


def at(*keys):
    """A place in a manifest: returns what puts a value there."""

    def put(manifest, value):
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return put


GRID = ("header", "grids", 0)
FORGED = [
    *((place, value) for place in (("header",), ("shards",), ("provenance",), ("format",)) for value in (None, 3, "x")),
    (("header",), {}), (("header", "num_images"), 26), (("header", "num_images"), 10**30),
    (("header", "num_images"), "25"), (("header", "grids"), []), (("header", "grids"), {}), (GRID, {}),
    (("header", "grids"), [[3, 5, 300]]), ((*GRID, "height"), 15), ((*GRID, "height"), 10**9), ((*GRID, "width"), 5.0),
    ((*GRID, "num_embeddings"), 256), ((*GRID, "num_embeddings"), 299), ((*GRID, "num_embeddings"), 10**12),
    ((*GRID, "num_embeddings"), 2**17), ((*GRID, "more"), 1), (("header", "classes"), "ab"),
    (("header", "classes"), [1, 2]), (("header", "classes"), ["ant"]), (("header", "split"), 3),
    (("header", "tokenizer_fingerprint"), None), (("header", "source"), []), (("header", "more"), 1), (("shards",), []),
    (("shards", 0), []), (("shards", 0, "file"), "../codes/codes-00000.safetensors"),
    (("shards", 0, "file"), "/etc/passwd"), (("shards", 0, "file"), "codes-00001.safetensors"),
    (("shards", 0, "file"), "codes-0.safetensors"), (("shards", 0, "file"), "\x00"), (("shards", 0, "file"), 3),
    (("shards", 0, "num_images"), -1), (("shards", 0, "num_images"), 11), (("shards", 0, "num_images"), "10"),
    (("shards", 0, "sha256"), 3), (("shards", 0, "sha256"), "f" * 64), (("shards", 0, "more"), 1),
]  # fmt: skip


@pytest.mark.parametrize("place,value", FORGED, ids=str)
def test_a_forged_manifest_is_refused_in_a_line(folder, place, value):
    forge(folder / "manifest.json", lambda manifest: at(*place)(manifest, value))
    with pytest.raises(InputError) as caught:
        CodeDataset(folder)
    assert len(str(caught.value)) < 500


def forge_shard(folder, content=None, **tensors):
    """Replace the first shard, or some tensors of it, and compute the digests again."""
    path = folder / "codes-00000.safetensors"
    if content is None:
        save_file({name: array for name, array in {**load_file(path), **tensors}.items() if array is not None}, path)
    else:
        path.write_bytes(content)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    forge(folder / "manifest.json", lambda manifest: manifest["shards"][0].update(sha256=checksum))


ZEROS = np.zeros((10, 3, 5), dtype=np.uint16)


@pytest.mark.parametrize(
    "tensors,reason",
    [
        ({"codes.0": ZEROS + 300}, "no codes from 0 to 299"),
        ({"codes.0": ZEROS.astype(np.int64) - 1}, "no codes from 0 to 299"),
        ({"codes.0": ZEROS.astype(np.uint32)}, "no codes from 0 to 299"),
        ({"codes.0": ZEROS.astype(np.float32)}, "not a shard of codes"),
        ({"codes.0": ZEROS[:9]}, "what the manifest says"),
        ({"codes.0": None}, "what the manifest says"),
        ({"labels": None}, "labels that the manifest promises"),
        ({"labels": np.zeros(9, dtype=np.int64)}, "labels that the manifest promises"),
        ({"labels": np.zeros(10, dtype=np.uint8)}, "labels that the manifest promises"),
        ({"labels": np.full(10, -1)}, "the labels -1 to -1, of 2 classes"),
        ({"labels": np.full(10, 2)}, "the labels 2 to 2, of 2 classes"),
    ],
)
def test_a_forged_shard_is_refused_with_the_reason(folder, tensors, reason):
    forge_shard(folder, **tensors)
    with pytest.raises(InputError, match=reason):
        CodeDataset(folder)


def as_shard(header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    "content",
    [
        b"cut",
        b"\xff" * 16,
        as_shard(b"[" * 10**5),
        as_shard([]),
        as_shard({"codes.0": 3}),
        as_shard({"codes.0": {"dtype": "U16", "shape": [10, 3, 5], "data_offsets": [0, 10**12]}}),
        as_shard({"codes.0": {"dtype": "U16", "shape": [10, 3, 5], "data_offsets": [-300, 0]}}, b"\x00" * 300),
        as_shard({"codes.0": {"dtype": "U16", "shape": [10**9, 3, 5], "data_offsets": [0, 300]}}, b"\x00" * 300),
        as_shard({"codes.0": {"dtype": [], "shape": [10, 3, 5], "data_offsets": [0, 300]}}, b"\x00" * 300),
        as_shard({"__metadata__": {}, "codes.0": {"dtype": "U16", "shape": None, "data_offsets": [0, 0]}}),
    ],
    ids=lambda content: str(content[:90]),
)
def test_a_forged_file_in_the_place_of_a_shard_is_refused(folder, content):
    forge_shard(folder, content)
    with pytest.raises(InputError, match=r"not a shard of codes|what the manifest says"):
        CodeDataset(folder)
    (folder / "manifest.json").unlink()
    assert missing_ranges(folder, HEADER) == [range(10)]


def test_an_unfinished_export_with_a_shard_that_cannot_be_is_not_finished(folder):
    (folder / "manifest.json").unlink()
    wrong = HEADER.num_images  # a label that no class has
    shard = CodeShard(CODES[:10], torch.full((10,), wrong), 0)
    (folder / "codes-00000.safetensors").unlink()
    with pytest.raises(InputError, match="remove it and run the same command again"):
        write_codes(folder, HEADER, [range(10)], [shard], {})
    assert not (folder / "manifest.json").exists()
