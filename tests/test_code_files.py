"""Codes as plain arrays, in .npz and Parquet files: what was written is decoded, what cannot be codes is refused."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from written_codes import COUNT, HEADER, LABELS, LAYOUTS, draw_codes, export, shard_of

from codegrid.codes import Grid
from codegrid.data.code_files import Assumed, files_of, open_codes, open_to_learn
from codegrid.data.code_writer import shard_ranges
from codegrid.data.codes import CodeDataset
from codegrid.data.manifest import FILE_COLUMN, FILES
from codegrid.data.npz import code_names, read_npz, write_npz
from codegrid.data.parquet import read_parquet, write_parquet
from codegrid.data.splits import hold_out
from codegrid.errors import InputError

FORMATS = {"npz": write_npz, "parquet": write_parquet}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr("codegrid.data.code_writer.SHARD_SIZE", 10)
    monkeypatch.setattr("codegrid.data.npz.COPIED", 64)
    monkeypatch.setattr("codegrid.data.parquet.GROUP_CODES", 50)


def tokenizer_of(layout, fingerprint=HEADER.tokenizer_fingerprint):
    """As much of a tokenizer as is asked for."""
    return SimpleNamespace(layout=layout, fingerprint=lambda: fingerprint)


def write(path, layout, form=None, codes=None, **header):
    """Write codes of a layout, with labels, in the format of the file's ending, or as a code dataset."""
    codes = draw_codes(layout) if codes is None else codes
    header = replace(HEADER, grids=layout, **header)
    if form is None:
        export(path, header, lambda rows: shard_of(rows, codes))
    else:
        pytest.importorskip("pyarrow" if form == "parquet" else "numpy")
        path = path.with_suffix(f".{form}")
        FORMATS[form](path, header, (shard_of(rows, codes) for rows in shard_ranges(COUNT)))
    return path


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_grids_of_any_axes_and_number_are_read_as_they_were_written(tmp_path, name, form):
    layout = LAYOUTS[name]
    opened = open_codes(write(tmp_path / "codes", layout, form), tokenizer_of(layout))
    batch = opened.batch([24, 0, 9])
    assert len(opened) == COUNT and len(batch.codes) == len(layout)
    for found, expected in zip(batch.codes, draw_codes(layout), strict=True):
        assert torch.equal(found, expected[[24, 0, 9]])
    assert torch.equal(batch.labels, LABELS[[24, 0, 9]]) and np.array_equal(opened.labels, LABELS)


@pytest.mark.parametrize("form", FORMATS)
def test_columns_have_their_own_names(tmp_path, form):
    columns = {
        "place": torch.rand(COUNT, 2),
        "start": torch.arange(COUNT),
        "file": [f"{i}.png" for i in range(COUNT)],
        "captions": [["ä", f"b{i}"] for i in range(COUNT)],
    }
    kinds = {
        "place": {"kind": "float", "shape": [2]},
        "start": {"kind": "int", "shape": []},
        "file": {"kind": "text", "shape": []},
        "captions": {"kind": "text", "shape": [2]},
    }
    path, codes = tmp_path / f"codes.{form}", draw_codes(HEADER.layout)
    header = replace(HEADER, classes=[], columns=kinds)
    pytest.importorskip("pyarrow" if form == "parquet" else "numpy")
    FORMATS[form](path, header, (shard_of(rows, codes, columns) for rows in shard_ranges(COUNT)))
    if form == "npz":
        arrays = read_npz(path)
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        arrays = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    assert arrays.keys() == {"codes", *kinds}
    assert np.array_equal(arrays["codes"], codes[0]) and np.allclose(arrays["place"], columns["place"])
    for name in ("start", "file", "captions"):
        assert np.array_equal(arrays[name], columns[name])


NAMES = [f"cat/{i}.png" for i in range(COUNT - 1)] + ["ein längerer Name.png"]


@pytest.mark.parametrize("form", [None, *FORMATS])
@pytest.mark.parametrize("with_names", [True, False])
def test_the_names_of_files_come_back_with_their_rows(tmp_path, form, with_names, monkeypatch):
    monkeypatch.setattr("codegrid.data.code_files.AT_ONCE", 7)
    pytest.importorskip("pyarrow" if form == "parquet" else "numpy")
    columns = {"labels": LABELS} | ({FILES: NAMES} if with_names else {})
    header = replace(HEADER, columns={FILES: FILE_COLUMN} if with_names else {})
    path = tmp_path / f"codes.{form}"
    if form:
        FORMATS[form](path, header, (shard_of(rows, columns=columns) for rows in shard_ranges(COUNT)))
    else:
        export(path, header, lambda rows: shard_of(rows, columns=columns))
    opened = open_codes(path, tokenizer_of(HEADER.layout))
    assert files_of(opened, range(3, 25)) == (NAMES[3:25] if with_names else None)
    assert opened.batch([24, 0]).columns.get(FILES) == ([NAMES[24], NAMES[0]] if with_names else None)
    assert len(opened.fingerprint()) == 64


def test_arrays_of_one_grid_and_of_several_are_named():
    assert code_names(1) == ["codes"] and code_names(2) == ["codes.0", "codes.1"]


@pytest.mark.parametrize("form", [None, "parquet"])
def test_codes_of_another_tokenizer_are_refused(tmp_path, form):
    path = write(tmp_path / "codes", LAYOUTS["pyramid"], form)
    with pytest.raises(InputError, match="codes of another tokenizer"):
        open_codes(path, tokenizer_of(LAYOUTS["pyramid"], "another"))


@pytest.mark.parametrize("form", [None, *FORMATS])
@pytest.mark.parametrize(
    "layout",
    [
        LAYOUTS["pyramid"][:1],
        LAYOUTS["pyramid"][::-1],
        (*LAYOUTS["pyramid"], Grid((8, 12), 300)),
        (Grid((2, 3), 15), Grid((4, 6), 300)),
        (Grid((2, 3), 16), Grid((24,), 300)),
    ],
    ids=str,
)
def test_codes_that_a_tokenizer_cannot_decode_are_refused(tmp_path, form, layout):
    path = write(tmp_path / "codes", LAYOUTS["pyramid"], form)
    with pytest.raises(InputError, match=r"codes"):
        open_codes(path, tokenizer_of(layout))


def test_a_tokenizer_may_know_more_codes_than_there_are(tmp_path):
    path = write(tmp_path / "codes", LAYOUTS["hw"])
    assert isinstance(open_codes(path, tokenizer_of((Grid((3, 5), 301),))), CodeDataset)


def test_arrays_that_were_saved_without_names_are_codes_and_labels(tmp_path):
    codes = draw_codes(LAYOUTS["hw"])[0].numpy()
    np.savez(tmp_path / "a.npz", codes, LABELS)
    opened = open_codes(tmp_path / "a.npz", tokenizer_of(LAYOUTS["hw"]))
    assert np.array_equal(opened.codes[0], codes) and np.array_equal(opened.labels, LABELS)


@pytest.mark.parametrize("name,form", [("CODES.NPZ", "npz"), ("folder.npz", None)])
def test_a_file_is_one_in_capitals_too_and_a_folder_one_whatever_its_name(tmp_path, name, form):
    layout = LAYOUTS["hw"]
    write(tmp_path / name, layout, form).rename(tmp_path / name)
    for opened in (open_codes(tmp_path / name, tokenizer_of(layout)), open_to_learn(tmp_path / name)):
        assert torch.equal(opened.batch(range(COUNT)).codes[0], draw_codes(layout)[0])


CODES = np.zeros((4, 3, 5), dtype=np.int64)


@pytest.mark.parametrize(
    "arrays,reason",
    [
        ({"codes": CODES + 300}, "code 300 in `codes`: codes must be from 0 to 299"),
        ({"codes": CODES - 1}, "code -1 in `codes`"),
        ({"codes": CODES * 0.5}, r"whole numbers of shape \(n, h, w\)"),
        ({"codes": CODES[0]}, r"whole numbers of shape \(n, h, w\)"),
        ({"codes": CODES[:0]}, "at least one grid"),
        ({"codes": CODES.transpose(0, 2, 1)}, "grids of 5×3 codes, but this tokenizer has 3×5"),
        ({"grids": CODES}, "`codes` must be"),
        ({"codes": CODES, "labels": np.zeros(3, dtype=int)}, "one whole number for each of 4"),
        ({"codes": CODES, "labels": np.full(4, -2)}, "label -2"),
        ({"codes": CODES, "labels": np.full(4, 10**6)}, "label 1000000"),
        ({"codes": CODES, "files": np.array(["a.png"])}, "`files` must hold one name for each of 4"),
        ({"codes": CODES, "files": np.arange(4)}, "`files` must hold one name for each of 4"),
    ],
)
def test_arrays_that_are_not_codes_are_refused(tmp_path, arrays, reason):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=reason):
        open_codes(tmp_path / "a.npz", tokenizer_of(LAYOUTS["hw"]))


def test_grids_that_are_not_as_many_are_refused(tmp_path):
    coarse, fine = (np.zeros((4, *grid.shape), dtype=int) for grid in LAYOUTS["pyramid"])
    np.savez(tmp_path / "a.npz", **{"codes.0": coarse, "codes.1": fine[:3]})
    with pytest.raises(InputError, match=r"codes\.0, codes\.1 must all hold the same number of grids"):
        open_codes(tmp_path / "a.npz", tokenizer_of(LAYOUTS["pyramid"]))


@pytest.mark.parametrize("name", ["nowhere.npz", "nowhere.parquet", "nowhere"])
def test_a_file_that_does_not_exist_is_named(tmp_path, name):
    with pytest.raises(InputError, match=rf"no (file|folder) .*{name}"):
        open_codes(tmp_path / name, tokenizer_of(LAYOUTS["hw"]))


def test_fingerprints_follow_the_arrays(tmp_path):
    layout = LAYOUTS["pyramid"]
    prints = {
        open_codes(
            write(tmp_path / name, layout, "npz", draw_codes(layout, seed=seed)), tokenizer_of(layout)
        ).fingerprint()
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    }
    assert len(prints) == 2


def test_the_header_travels_with_a_parquet_file(tmp_path):
    opened = open_codes(write(tmp_path / "codes", LAYOUTS["residual"], "parquet"), tokenizer_of(LAYOUTS["residual"]))
    assert opened.classes == ["ant", "bee"]
    arrays, header = read_parquet(write(tmp_path / "codes", LAYOUTS["residual"], "parquet"))
    assert arrays.keys() == {"codes.0", "codes.1", "labels"} and header == replace(HEADER, grids=LAYOUTS["residual"])
    assert arrays["codes.0"].dtype == np.uint8


@pytest.mark.parametrize("name", LAYOUTS)
def test_codes_to_learn_are_the_same_from_every_format(tmp_path, name):
    layout = LAYOUTS[name]
    assumed = Assumed(layout, HEADER.tokenizer_fingerprint, HEADER.classes)
    for form in (None, *FORMATS):
        codes = open_to_learn(write(tmp_path / f"codes{form}", layout, form), assumed)
        assert codes.layout == layout and codes.classes == ["ant", "bee"]
        assert codes.header.tokenizer_fingerprint == HEADER.tokenizer_fingerprint
        parts = hold_out(codes, None)
        assert [len(part) for part in parts] == [23, 2]
        held_out = LABELS.numpy()[parts[1].numbers]
        assert parts[1].labels.tolist() == parts[1].batch([0, 1]).labels.tolist() == held_out.tolist()


def test_arrays_of_other_programs_tell_their_grids_by_their_shape_and_largest_code(tmp_path):
    codes = np.arange(4 * 15).reshape(4, 3, 5)
    np.save(tmp_path / "a.npy", codes)
    np.savez(tmp_path / "a.npz", codes=codes, labels=np.array([0, 2, 0, 0]))
    np.savez(tmp_path / "b.npz", **{"codes.0": codes, "codes.1": codes[:, 0]})
    alone = open_to_learn(tmp_path / "a.npy")
    assert alone.layout == (Grid((3, 5), 60),) and alone.classes == [] and alone.header.tokenizer_fingerprint == ""
    assert open_to_learn(tmp_path / "a.npz").classes == ["0", "1", "2"]
    assert open_to_learn(tmp_path / "b.npz").layout == (Grid((3, 5), 60), Grid((5,), 50))


@pytest.mark.parametrize(
    "arrays,reason",
    [
        ({"codes": CODES * 0.5}, "`codes` must be whole numbers"), ({"codes": CODES - 1}, "code -1"),
        ({"codes": CODES[:, 0, 0]}, r"of shape \(n, t\)"), ({"arr_0": CODES}, "`codes` must be"),
        ({"codes.0": CODES, "codes.2": CODES}, r"`codes\.1` must be"),
        ({"codes": CODES, "labels": np.array([0, 1, -1, 0])}, "some labels are -1"),
    ],
)  # fmt: skip
def test_arrays_that_cannot_be_learnt_are_refused(tmp_path, arrays, reason):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=reason):
        open_to_learn(tmp_path / "a.npz")
