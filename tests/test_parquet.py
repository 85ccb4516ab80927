"""Codes as a Parquet file: what Hugging Face `datasets` reads out of it is what was exported, and the way back."""

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_code_files import tokenizer_of
from written_codes import CODES, COUNT, HEADER, LABELS, LAYOUTS, draw_codes, shard_of

from codegrid.codes import Grid
from codegrid.data.code_files import open_codes
from codegrid.data.codes import CodeBatch
from codegrid.data.manifest import CodeHeader
from codegrid.data.parquet import read_parquet, write_parquet
from codegrid.errors import InputError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def feature_of(datasets, grid, dtype):
    """The feature of `datasets` for a grid of codes."""
    if len(grid.shape) == 1:
        return datasets.List(datasets.Value(dtype))
    return {2: datasets.Array2D, 3: datasets.Array3D}[len(grid.shape)](grid.shape, dtype)


@pytest.mark.parametrize("name", LAYOUTS)
def test_datasets_reads_the_grids_and_the_names_of_the_classes(name, tmp_path):
    datasets = pytest.importorskip("datasets")
    layout, codes, path = LAYOUTS[name], draw_codes(LAYOUTS[name]), tmp_path / "codes.parquet"
    write_parquet(path, replace(HEADER, grids=layout), [shard_of(range(COUNT), codes)])
    loaded = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    names = ["codes"] if len(layout) == 1 else [f"codes.{i}" for i in range(len(layout))]
    assert loaded.features["label"].names == HEADER.classes
    dtypes = ["uint8" if grid.num_embeddings < 257 else "uint16" if grid.num_embeddings < 2**16 else "uint32"
              for grid in layout]  # fmt: skip
    for column, grid, dtype in zip(names, layout, dtypes, strict=True):
        assert loaded.features[column] == feature_of(datasets, grid, dtype)
    arrays = {column: np.asarray(values) for column, values in loaded[:].items()}
    assert all(np.array_equal(arrays[column], grid) for column, grid in zip(names, codes, strict=True))
    assert np.array_equal(arrays["label"], LABELS)
    # and back, from the file that `datasets` writes
    loaded.to_parquet(tmp_path / "again.parquet")
    again = open_codes(tmp_path / "again.parquet", tokenizer_of(layout))
    assert all(np.array_equal(*pair) for pair in zip(again.codes, codes, strict=True))
    assert np.array_equal(again.labels, LABELS)


def test_classes_of_one_name_are_plain_numbers(tmp_path):
    header = replace(HEADER, classes=["ant", "ant"])
    write_parquet(tmp_path / "codes.parquet", header, [shard_of(range(COUNT))])
    marks = pq.read_schema(tmp_path / "codes.parquet").metadata
    features = json.loads(marks[b"huggingface"])["info"]["features"]
    assert features["label"] == {"dtype": "int64", "_type": "Value"}
    assert CodeHeader(**json.loads(marks[b"codegrid"])) == header


def test_codes_are_let_go_as_they_are_written(tmp_path):
    header = CodeHeader(60, [Grid((64, 64), 512)], [], "train", "f", "s")
    written = []

    def shards():
        for first in range(0, 60, 20):
            assert sum(codes() is not None for codes in written) <= 1  # the last one, at most
            codes = torch.full((20, 64, 64), first)
            written.append(weakref.ref(codes))
            yield CodeBatch((codes,), {})
            del codes

    write_parquet(tmp_path / "codes.parquet", header, shards())
    arrays, known = read_parquet(tmp_path / "codes.parquet")
    assert arrays.keys() == {"codes"} and arrays["codes"].dtype == np.uint16 and known == header
    assert arrays["codes"].shape == (60, 64, 64) and arrays["codes"][::20, 0, 0].tolist() == [0, 20, 40]


def test_row_groups_are_small(tmp_path, monkeypatch):
    monkeypatch.setattr("codegrid.data.parquet.GROUP_CODES", 10 * 15)
    write_parquet(tmp_path / "codes.parquet", HEADER, [shard_of(range(COUNT))])
    assert pq.ParquetFile(tmp_path / "codes.parquet").num_row_groups == 3
    assert np.array_equal(read_parquet(tmp_path / "codes.parquet")[0]["codes"], CODES[0])


GRID = [[0] * 5] * 3


@pytest.mark.parametrize(
    "columns,reason",
    [
        ({"codes": [[[300] * 5] * 3]}, "code 300 in"),
        ({"codes": [[[-1] * 5] * 3]}, "code -1 in"),
        ({"codes": [[[0] * 3] * 5]}, "grids of 5×3"),
        ({"codes": [GRID, [[0] * 5] * 2]}, "of the same size"),
        ({"codes": [GRID, None]}, "of the same size"),
        ({"codes": [GRID, [[0] * 5, None, [0] * 5]]}, "of the same size"),
        ({"codes": [[[0, 0, None, 0, 0]] * 3]}, "none of them missing"),
        ({"codes": [[[0.5] * 5] * 3]}, "whole numbers"),
        ({"codes": [[["a"] * 5] * 3]}, "whole numbers"),
        ({"codes": [1, 2]}, r"shape \(n, h, w\)"),
        ({"codes": []}, "at least one grid"),
        ({"grids": [GRID]}, "a column `codes`"),
        ({"codes": [GRID], "label": [-2]}, "label -2"),
        ({"codes": [GRID], "label": ["cat"]}, "whole numbers"),
        ({"codes": [GRID], "label": [None]}, "whole numbers"),
        ({"codes": [GRID], "label": [0.0]}, "whole numbers"),
        ({"codes": [GRID], "label": [[0, 1]]}, "one whole number for each"),
        ({"codes": [GRID, GRID], "files": ["a.png", None]}, "`files` must be names of files, none of them missing"),
    ],
    ids=str,
)
def test_codes_that_are_not_codes_are_refused(columns, reason, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "codes.parquet")
    with pytest.raises(InputError, match=reason):
        open_codes(tmp_path / "codes.parquet", tokenizer_of(LAYOUTS["hw"]))


def test_other_kinds_of_lists_are_read_as_well(tmp_path):
    kind = pa.list_(pa.large_list(pa.int32()), 3)
    table = {"codes": pa.array([GRID, GRID], kind), "labels": [1, 0], "files": [["a.png"], []]}
    pq.write_table(pa.table(table), tmp_path / "codes.parquet")
    codes = open_codes(tmp_path / "codes.parquet", tokenizer_of(LAYOUTS["hw"]))
    assert codes.codes[0].shape == (2, 3, 5) and codes.labels.tolist() == [1, 0] and codes.files is None


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_file_is_one_line(damage, tmp_path):
    path = tmp_path / "codes.parquet"
    pq.write_table(pa.table({"codes": [GRID]}), path)
    path.write_bytes({"cut": path.read_bytes()[:-9], "empty": b"", "text": b"codes"}[damage])
    with pytest.raises(InputError, match="not a readable Parquet file"):
        open_codes(path, tokenizer_of(LAYOUTS["hw"]))


def test_codes_that_no_memory_holds_are_refused(tmp_path, monkeypatch):
    write_parquet(tmp_path / "codes.parquet", HEADER, [shard_of(range(COUNT))])
    monkeypatch.setattr("codegrid.budget.machine_memory", lambda: 100)
    with pytest.raises(InputError, match="would take 3,500 bytes, but this machine has 100"):
        open_codes(tmp_path / "codes.parquet", tokenizer_of(LAYOUTS["hw"]))


def test_columns_that_are_not_numbers_are_refused_before_they_are_read(tmp_path, monkeypatch):
    long = pa.array(["x" * 1000] * 10).dictionary_encode()
    pq.write_table(pa.table({"codes": [GRID] * 10, "label": long}), tmp_path / "codes.parquet")
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *rest, **options: pytest.fail("was read"))
    with pytest.raises(InputError, match=r"`label` holds dictionary<.*whole numbers"):
        open_codes(tmp_path / "codes.parquet", tokenizer_of(LAYOUTS["hw"]))


def test_without_pyarrow_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r'`format` parquet needs .*pip install "codegrid\[hub\]"'):
        write_parquet(tmp_path / "codes.parquet", HEADER, [])
