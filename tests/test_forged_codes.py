"""Code datasets of a stranger, whose digests are sound: anyone can compute them."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from written_codes import HEADER, export, shard_of

from codegrid.data.code_writer import missing_ranges
from codegrid.data.codes import CodeDataset
from codegrid.errors import InputError
from codegrid.tensors import digest_of

WITH_FILES = replace(HEADER, columns={"file": {"kind": "text", "shape": []}})


def encode(rows):
    return shard_of(rows, columns={"labels": [0] * 25, "file": [f"{i:02d}.png" for i in range(25)]})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("codegrid.data.code_writer.SHARD_SIZE", 10)
    export(tmp_path / "codes", WITH_FILES, encode)
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


def read(folder):
    dataset = CodeDataset(folder)
    return dataset.batch(range(len(dataset))), dataset.tables()


GRID = ("header", "grids", 0)
COLUMNS = ("header", "columns")
FORGED = [
    *((place, value) for place in (("header",), ("shards",), ("provenance",), ("format",)) for value in (None, 3, "x")),
    (("header",), {}), (("header", "num_images"), 26), (("header", "num_images"), 10**30),
    (("header", "num_images"), "25"), (("header", "views"), 0), (("header", "views"), 2), (("header", "views"), None),
    (("header", "grids"), []), (("header", "grids"), {}), (GRID, {}), (("header", "grids"), [[3, 5, 300]]),
    ((*GRID, "shape"), [15, 5]), ((*GRID, "shape"), [10**9, 5]), ((*GRID, "shape"), [3, 5.0]), ((*GRID, "shape"), []),
    ((*GRID, "shape"), 15), ((*GRID, "shape"), [3, 5, 1, 1]), ((*GRID, "shape"), ["3", "5"]), ((*GRID, "shape"), [15]),
    ((*GRID, "num_embeddings"), 256), ((*GRID, "num_embeddings"), 200), ((*GRID, "num_embeddings"), 10**12),
    ((*GRID, "num_embeddings"), 2**17), ((*GRID, "more"), 1), (("header", "classes"), "ab"),
    (("header", "grids"), [{"shape": [3, 5], "num_embeddings": 300}] * 2),
    (("header", "classes"), [1, 2]), (("header", "classes"), []), (("header", "split"), 3),
    (("header", "tokenizer_fingerprint"), None), (("header", "source"), []), (("header", "more"), 1),
    (COLUMNS, []), (COLUMNS, {}), (COLUMNS, {"labels": 3}), ((*COLUMNS, "labels"), {"kind": "float", "shape": []}),
    ((*COLUMNS, "labels", "kind"), ["int"]), ((*COLUMNS, "file", "kind"), "int"), ((*COLUMNS, "file", "shape"), [2]),
    ((*COLUMNS, "file", "shape"), [10**30]), ((*COLUMNS, "file", "shape"), None), ((*COLUMNS, "file", "more"), 1),
    ((*COLUMNS, "more"), {"kind": "int", "shape": []}), ((*COLUMNS, "../x"), {"kind": "int", "shape": []}),
    (("tables",), None), (("tables",), "f" * 64),
    (("shards",), []), (("shards", 0), []), (("shards", 0, "file"), "../codes/codes-00000.safetensors"),
    (("shards", 0, "file"), "/etc/passwd"), (("shards", 0, "file"), "codes-00001.safetensors"),
    (("shards", 0, "file"), "codes-0.safetensors"), (("shards", 0, "file"), "\x00"), (("shards", 0, "file"), 3),
    (("shards", 0, "num_images"), -1), (("shards", 0, "num_images"), 11), (("shards", 0, "num_images"), "10"),
    (("shards", 0, "sha256"), 3), (("shards", 0, "sha256"), "f" * 64), (("shards", 0, "more"), 1),
]  # fmt: skip


@pytest.mark.parametrize("place,value", FORGED, ids=str)
def test_a_forged_manifest_is_refused_in_a_line(folder, place, value):
    forge(folder / "manifest.json", lambda manifest: at(*place)(manifest, value))
    with pytest.raises(InputError) as caught:
        read(folder)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_codes_of_the_first_version_are_refused_by_name(folder):
    forge(folder / "manifest.json", lambda manifest: manifest.update(format="codegrid codes 1", header={}))
    with pytest.raises(InputError, match=r"made by codegrid 0\.1: export the codes again"):
        CodeDataset(folder)


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
OFFSETS = np.arange(11) * 6  # of the names of the files


@pytest.mark.parametrize(
    "tensors,reason",
    [
        ({"codes.0": ZEROS + 300}, "not codes from 0 to 299"),
        ({"codes.0": ZEROS.astype(np.int64) - 1}, "not codes from 0 to 299"),
        ({"codes.0": ZEROS.astype(np.uint32)}, "not codes from 0 to 299"),
        ({"codes.0": ZEROS.astype(np.float16)}, "not a shard of codes"),
        ({"codes.0": ZEROS[:9]}, "not match the manifest"),
        ({"codes.0": None}, "not match the manifest"),
        ({"columns.labels": None}, r"not match the manifest \(column labels\)"),
        ({"columns.labels": np.zeros(9, dtype=np.int64)}, "not match the manifest"),
        ({"columns.labels": np.zeros(10, dtype=np.uint8)}, "not match the manifest"),
        ({"columns.labels": np.full(10, -1)}, "the labels -1 to -1, of 2 classes"),
        ({"columns.labels": np.full(10, 2)}, "the labels 2 to 2, of 2 classes"),
        ({"columns.file.offsets": None}, r"not match the manifest \(column file\)"),
        ({"columns.file.bytes": None}, "not match the manifest"),
        ({"columns.file.offsets": OFFSETS[:-1]}, "not match the manifest"),
        ({"columns.file.offsets": OFFSETS + 1}, "outside of their bytes"),
        ({"columns.file.offsets": OFFSETS * 2}, "outside of their bytes"),
        ({"columns.file.offsets": OFFSETS[::-1].copy()}, "outside of their bytes"),
        ({"columns.file.offsets": np.where(OFFSETS == 12, -(2**63), OFFSETS)}, "outside of their bytes"),
        ({"columns.file.bytes": np.full(60, 255, dtype=np.uint8)}, "not UTF-8"),
        ({"columns.file.bytes": np.frombuffer(("é" * 30).encode(), np.uint8), "columns.file.offsets": np.where(
            OFFSETS == 12, 13, OFFSETS)}, "not UTF-8"),
    ],
)  # fmt: skip
def test_a_forged_shard_is_refused_with_the_reason(folder, tensors, reason):
    forge_shard(folder, **tensors)
    with pytest.raises(InputError, match=reason):
        read(folder)


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
    with pytest.raises(InputError, match=r"not a shard of codes|not match the manifest"):
        read(folder)
    (folder / "manifest.json").unlink()
    assert range(10) in missing_ranges(folder, WITH_FILES)


def test_tables_of_another_size_are_refused(folder):
    path = folder / "tables.safetensors"
    save_file({"entries.0": np.zeros((299, 4), dtype=np.float32)}, path)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    forge(folder / "manifest.json", lambda manifest: manifest.update(tables=checksum))
    with pytest.raises(InputError, match=r"entries\.0 has the shape \[299, 4\], not 300 rows"):
        CodeDataset(folder).tables()
