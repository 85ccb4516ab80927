"""Codes as a Parquet file: what Hugging Face `datasets` and `decode_codes` read out of it is what was exported."""

import json
import sys
import weakref

import numpy as np
import pytest
import torch

from codegrid.data import CodeDataset
from codegrid.data.code_files import open_codes
from codegrid.data.codes import CodeHeader, CodeShard
from codegrid.data.parquet import read_parquet, write_parquet
from codegrid.errors import InputError
from codegrid.stage1_vqvae import VQVAE

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr("codegrid.data.parquet.GROUP_CODES", 20 * 15)  # 20 grids of 3×5: the last group is odd


@pytest.fixture
def export(small_run, bars_file, tmp_path, run_script):
    def call(*flags):
        data = ("--dataset", "npz", "--data-root", bars_file, "--tokenizer", small_run / "tokenizer")
        return run_script("export_codes", *data, "--output", tmp_path / "p", "--format", "parquet", *flags)

    return call


def test_datasets_reads_the_grids_and_the_names_of_the_classes(export, small_run, tmp_path):
    datasets = pytest.importorskip("datasets")
    assert export().code == 0
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["codes.parquet", "run.json"]
    file, cache = str(tmp_path / "p" / "codes.parquet"), str(tmp_path / "cache")
    loaded = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=cache)
    codes = CodeDataset(small_run / "codes")
    assert loaded.features["codes"] == datasets.Array2D((3, 5), "uint8")
    assert loaded.features["label"].names == codes.classes
    arrays = {name: np.asarray(values) for name, values in loaded[:].items()}
    assert np.array_equal(arrays["codes"], codes.__getitems__(range(54)).codes)
    assert np.array_equal(arrays["label"], codes.labels)
    # and back, from the file that `datasets` writes
    loaded.to_parquet(tmp_path / "again.parquet")
    again = open_codes(str(tmp_path / "again.parquet"), VQVAE.from_pretrained(small_run / "tokenizer"))
    assert np.array_equal(again.codes, arrays["codes"]) and np.array_equal(again.labels, codes.labels)


def test_a_parquet_file_is_decoded_like_the_code_dataset_and_its_run_is_recorded(
    export, small_run, tmp_path, run_script
):
    assert export().code == 0 and "nothing to do" in export().out
    record = json.loads((tmp_path / "p" / "run.json").read_text())
    manifest = json.loads((small_run / "codes" / "manifest.json").read_text())
    assert record["finished"] and record["ties"] == manifest["provenance"]["ties"]
    assert pq.ParquetFile(tmp_path / "p" / "codes.parquet").num_row_groups == 3
    for name, codes in (("one", small_run / "codes"), ("two", tmp_path / "p" / "codes.parquet")):
        flags = ("--tokenizer", small_run / "tokenizer", "--codes", codes, "--output", tmp_path / name)
        assert run_script("decode_codes", *flags).code == 0
    one, two = (np.load(tmp_path / name / "images.npz") for name in ("one", "two"))
    assert np.array_equal(one["arr_0"], two["arr_0"]) and np.array_equal(one["arr_1"], two["arr_1"])


def test_an_export_that_could_not_be_written_leaves_nothing(export, tmp_path, monkeypatch):
    def fill(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", fill)
    result = export()
    assert result.code == 2 and "no room is left" in result.err and not (tmp_path / "p").exists()


def test_without_pyarrow_the_command_that_installs_it_is_told(export, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = export()
    assert result.code == 2 and 'pip install -e ".[hub]"' in result.err and not (tmp_path / "p").exists()


def test_codes_are_let_go_as_they_are_written(tmp_path):
    header = CodeHeader(60, [{"height": 64, "width": 64, "num_embeddings": 512}], [], "train", "f", "s")
    written = []

    def shards():
        for first in range(0, 60, 20):
            assert sum(codes() is not None for codes in written) <= 1  # the last one, at most
            codes = torch.full((20, 64, 64), first)
            written.append(weakref.ref(codes))
            yield CodeShard(codes, None, 1)
            del codes

    assert write_parquet(tmp_path / "codes.parquet", header, shards()) == 3
    arrays, fingerprint = read_parquet(tmp_path / "codes.parquet")
    assert arrays.keys() == {"codes"} and arrays["codes"].dtype == np.uint16 and fingerprint == "f"
    assert arrays["codes"].shape == (60, 64, 64) and arrays["codes"][::20, 0, 0].tolist() == [0, 20, 40]


GRID = [[0] * 5] * 3


@pytest.mark.parametrize(
    "columns,reason",
    [
        ({"codes": [[[16] * 5] * 3]}, "code 16, but the codebook"),
        ({"codes": [[[-1] * 5] * 3]}, "code -1, but the codebook"),
        ({"codes": [[[0] * 3] * 5]}, "grids of 5×3"),
        ({"codes": [GRID, [[0] * 5] * 2]}, "of one size"),
        ({"codes": [GRID, None]}, "of one size"),
        ({"codes": [GRID, [[0] * 5, None, [0] * 5]]}, "of one size"),
        ({"codes": [[[0, 0, None, 0, 0]] * 3]}, "none of them missing"),
        ({"codes": [[[0.5] * 5] * 3]}, "whole numbers"),
        ({"codes": [[["a"] * 5] * 3]}, "whole numbers"),
        ({"codes": [1, 2]}, "not a readable Parquet file of codes"),
        ({"codes": []}, "at least one grid"),
        ({"grids": [GRID]}, "a column `codes`"),
        ({"codes": [GRID], "label": [-2]}, "label -2"),
        ({"codes": [GRID], "label": ["cat"]}, "whole numbers"),
        ({"codes": [GRID], "label": [None]}, "whole numbers"),
        ({"codes": [GRID], "label": [0.0]}, "whole numbers"),
    ],
    ids=str,
)
def test_codes_that_are_none_are_refused(columns, reason, small_run, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "codes.parquet")
    with pytest.raises(InputError, match=reason):
        open_codes(str(tmp_path / "codes.parquet"), VQVAE.from_pretrained(small_run / "tokenizer"))


def test_other_kinds_of_lists_are_read_as_well(small_run, tmp_path):
    kind = pa.list_(pa.large_list(pa.int32()), 3)
    pq.write_table(pa.table({"codes": pa.array([GRID, GRID], kind), "labels": [1, 0]}), tmp_path / "codes.parquet")
    codes = open_codes(str(tmp_path / "codes.parquet"), VQVAE.from_pretrained(small_run / "tokenizer"))
    assert codes.codes.shape == (2, 3, 5) and codes.labels.tolist() == [1, 0]


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_file_is_one_line(damage, small_run, tmp_path):
    path = tmp_path / "codes.parquet"
    pq.write_table(pa.table({"codes": [GRID]}), path)
    path.write_bytes({"cut": path.read_bytes()[:-9], "empty": b"", "text": b"codes"}[damage])
    with pytest.raises(InputError, match="not a readable Parquet file"):
        open_codes(str(path), VQVAE.from_pretrained(small_run / "tokenizer"))


def test_codes_of_another_tokenizer_and_codes_that_no_memory_holds_are_refused(small_run, tmp_path, monkeypatch):
    header = CodeHeader(2, [{"height": 3, "width": 5, "num_embeddings": 16}], [], "train", "another", "s")
    shard = CodeShard(torch.zeros(2, 3, 5, dtype=torch.int64), None, 0)
    write_parquet(tmp_path / "codes.parquet", header, [shard])
    tokenizer = VQVAE.from_pretrained(small_run / "tokenizer")
    with pytest.raises(InputError, match="codes of another tokenizer"):
        open_codes(str(tmp_path / "codes.parquet"), tokenizer)
    monkeypatch.setattr("codegrid.data.parquet.machine_memory", lambda: 100)
    with pytest.raises(InputError, match="240 bytes of codes, but this machine has 100"):
        open_codes(str(tmp_path / "codes.parquet"), tokenizer)
