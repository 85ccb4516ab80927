"""The code dataset: what is written is read, what is damaged or unfinished is not.

Shapes: n images, h w code grid.
"""

import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.utils.data import DataLoader, random_split
from written_codes import CODES, COUNT, HEADER, LABELS, LAYOUTS, draw_codes, export, shard_of

from codegrid.codes import Grid
from codegrid.data.code_writer import remove_codes, write_codes
from codegrid.data.codes import CodeBatch, CodeDataset
from codegrid.data.loading import StepSampler, in_order, load_batches, pieces_of
from codegrid.data.manifest import CodeHeader
from codegrid.data.shards import smallest_dtype
from codegrid.data.splits import Subset, hold_out
from codegrid.errors import InputError
from codegrid.locks import releasing
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.running.codes_folder import open_codes_folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("codegrid.data.code_writer.SHARD_SIZE", 10)


@pytest.fixture
def folder(tmp_path):
    export(tmp_path / "codes")
    return tmp_path / "codes"


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def rows_of(codes, chosen):
    return tuple(grid[chosen] for grid in codes)


def test_codes_and_labels_are_read_in_any_order_across_shards(folder):
    dataset = CodeDataset(folder)
    chosen = [24, 0, 9, 10, 10, -2]
    batch = dataset.batch(chosen)
    assert equal(batch.codes, rows_of(CODES, chosen)) and torch.equal(batch.labels, LABELS[chosen])
    assert batch.codes[0].dtype == torch.int64
    assert len(dataset) == COUNT and dataset.layout == LAYOUTS["hw"]
    assert dataset.classes == ["ant", "bee"] and np.array_equal(dataset.labels, LABELS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_grids_of_any_axes_and_number_are_read_as_they_were_written(tmp_path, name):
    layout, codes = LAYOUTS[name], draw_codes(LAYOUTS[name])
    export(tmp_path / "c", replace(HEADER, grids=layout), lambda rows: shard_of(rows, codes))
    dataset = CodeDataset(tmp_path / "c")
    assert dataset.layout == layout and equal(dataset.batch(range(COUNT)).codes, codes)
    shard = load_file(tmp_path / "c" / "codes-00000.safetensors")
    assert [shard[f"codes.{i}"].dtype for i in range(len(layout))] == [
        smallest_dtype(grid.num_embeddings) for grid in layout
    ]


@pytest.mark.parametrize(
    "num_embeddings,dtype", [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_codes_take_the_smallest_type_that_holds_them(tmp_path, num_embeddings, dtype):
    assert smallest_dtype(num_embeddings) == dtype
    header = replace(HEADER, grids=[Grid((3, 5), num_embeddings)])
    largest = torch.full((COUNT, 3, 5), num_embeddings - 1)
    export(tmp_path / "c", header, lambda rows: shard_of(rows, (largest,)))
    assert load_file(tmp_path / "c" / "codes-00000.safetensors")["codes.0"].dtype == dtype
    assert equal(CodeDataset(tmp_path / "c").batch(range(COUNT)).codes, (largest,))


COLUMNS = {
    "labels": LABELS,
    "start": torch.arange(COUNT) - 3,
    "actions": torch.arange(COUNT * 4).view(COUNT, 4),
    "position": torch.rand(COUNT, 2, 3),
    "file": [f"pictures/{i:03d}.png" for i in range(COUNT)],
    "captions": [[f"Bär {i}", "", "熊" * (i % 3)] for i in range(COUNT)],
}
KINDS = {
    "start": {"kind": "int", "shape": []},
    "actions": {"kind": "int", "shape": [4]},
    "position": {"kind": "float", "shape": (2, 3)},
    "file": {"kind": "text", "shape": []},
    "captions": {"kind": "text", "shape": [3]},
}


def test_columns_of_each_kind_are_read_as_they_were_written(tmp_path):
    export(tmp_path / "c", replace(HEADER, columns=KINDS), lambda rows: shard_of(rows, columns=COLUMNS))
    dataset = CodeDataset(tmp_path / "c")
    chosen = [24, 3, 9, 10]
    batch = dataset.batch(chosen)
    assert batch.columns.keys() == COLUMNS.keys()
    for name, column in COLUMNS.items():
        expected = column[chosen] if isinstance(column, torch.Tensor) else [column[i] for i in chosen]
        same = torch.equal if isinstance(column, torch.Tensor) else lambda a, b: a == b
        assert same(batch.columns[name], expected), name
    assert dataset[4].columns["captions"] == COLUMNS["captions"][4] and dataset[4].columns["start"] == 1


@pytest.mark.parametrize(
    "columns,reason",
    [
        ({"note": {"kind": "image", "shape": []}}, "choose one of int, float, text"),
        ({"Note": {"kind": "int", "shape": []}}, "lower-case letters"),
        ({"codes": {"kind": "int", "shape": []}}, "none of codes, label"),
        ({"note": {"kind": "int", "shape": [0]}}, "column shape"),
        ({"labels": {"kind": "int", "shape": [2]}}, "`labels` of one whole number"),
    ],
)
def test_a_header_with_columns_that_cannot_be_is_refused(columns, reason):
    with pytest.raises(InputError, match=reason):
        replace(HEADER, columns=columns)


@pytest.mark.parametrize(
    "shard,reason",
    [
        (CodeBatch((CODES[0][:10] + 290,), {"labels": LABELS[:10]}), "codes must be from 0 to 299"),
        (CodeBatch((CODES[0][:10] - 2**20,), {"labels": LABELS[:10]}), "codes must be from 0 to 299"),
        (CodeBatch((CODES[0][:9],), {"labels": LABELS[:10]}), "codes.0"),
        (CodeBatch(CODES * 2, {"labels": LABELS[:10]}), "grids and columns"),
        (CodeBatch((CODES[0][:10],), {}), "grids and columns"),
        (CodeBatch((CODES[0][:10],), {"labels": LABELS[:10] + 1}), "the labels 1 to 2, of 2 classes"),
        (CodeBatch((CODES[0][:10],), {"labels": LABELS[:10] * 0.5}), "kind int"),
        (CodeBatch((CODES[0][:10],), {"labels": LABELS[:9]}), "column labels"),
    ],
)
def test_a_shard_that_is_not_what_the_header_says_is_not_written(tmp_path, shard, reason):
    with pytest.raises(InputError, match=reason):
        export(tmp_path / "c", encode=lambda rows: shard)
    assert not list((tmp_path / "c").glob("codes-*"))


def test_codes_without_labels_have_none(tmp_path):
    export(tmp_path / "c", replace(HEADER, classes=[], columns={}), lambda rows: shard_of(rows, columns={}))
    dataset = CodeDataset(tmp_path / "c")
    assert dataset.labels is None and dataset[3].labels is None


def test_items_slices_and_lists_are_read_as_from_any_torch_data_set(folder):
    dataset = CodeDataset(folder)
    assert equal(dataset[11].codes, rows_of(CODES, 11)) and dataset[11].labels == LABELS[11]
    assert equal(dataset[-1].codes, rows_of(CODES, -1)) and equal(dataset[torch.tensor(3)].codes, rows_of(CODES, 3))
    assert equal(dataset[5:21:3].codes, rows_of(CODES, slice(5, 21, 3)))
    assert equal(dataset[np.array([3, 1])].codes, rows_of(CODES, [3, 1]))
    assert len(list(dataset)) == COUNT and dataset.batch([]).codes[0].shape == (0, 3, 5)
    for wrong in (COUNT, -COUNT - 1, np.int64(COUNT), [0, COUNT], [True] * 3):
        with pytest.raises(IndexError, match="there are 25"):
            dataset[wrong]
    for wrong in ([0.5], [[1]], "1", None, 1.0):
        with pytest.raises(TypeError):
            dataset[wrong]


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, list])
def test_a_mask_gives_the_rows_where_it_is_true(folder, kind):
    dataset = CodeDataset(folder)
    part = Subset(dataset, np.arange(5, 15))
    assert equal(dataset[kind(dataset.labels == 1)].codes, rows_of(CODES, slice(1, None, 2)))
    assert equal(part[kind(part.labels == 1)].codes, rows_of(CODES, slice(5, 15, 2)))
    assert dataset[kind(dataset.labels > 1)].codes[0].shape == (0, 3, 5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_of_torch_reads_batches_in_any_order(tmp_path, num_workers):
    export(tmp_path / "c", replace(HEADER, columns=KINDS), lambda rows: shard_of(rows, columns=COLUMNS))
    dataset = CodeDataset(tmp_path / "c")
    batches = list(DataLoader(dataset, batch_size=10, shuffle=True, num_workers=num_workers))
    files = [name for batch in batches for name in batch.columns["file"]]
    order = [COLUMNS["file"].index(name) for name in files]
    assert sorted(order) == list(range(COUNT)) and order != sorted(order)
    assert torch.equal(torch.cat([batch.codes[0] for batch in batches]), CODES[0][order])
    assert torch.equal(torch.cat([batch.labels for batch in batches]), LABELS[order])
    parts = random_split(dataset, [20, 5])
    assert [len(next(iter(DataLoader(part, batch_size=8))).labels) for part in parts] == [8, 5]


def test_a_code_dataset_and_a_part_of_it_say_what_they_are(folder):
    dataset = CodeDataset(folder)
    words = f"CodeDataset({str(folder)!r}: 25 rows of 3×5 codes out of 300, 2 classes, train)"
    assert repr(dataset) == words and repr(Subset(dataset, np.arange(7))) == f"Subset(7 rows of {words})"


def test_a_part_reads_its_rows(folder):
    part = Subset(CodeDataset(folder), np.array([20, 3, 7]))
    assert len(part) == 3 and part.layout == LAYOUTS["hw"] and part.labels.tolist() == LABELS[[20, 3, 7]].tolist()
    assert equal(part.batch([2, 0]).codes, rows_of(CODES, [7, 20])) and equal(part[1].codes, rows_of(CODES, 3))
    assert part.fingerprint() != Subset(part.codes, np.array([20, 3])).fingerprint() != part.codes.fingerprint()


@pytest.mark.parametrize(
    "change,reason",
    [
        ({"tokenizer_fingerprint": "e"}, "different tokenizers"),
        ({"classes": ["a", "b"]}, "different classes"),
        ({"grids": [Grid((3, 5), 301)]}, "different grids"),
    ],
)
def test_other_codes_to_validate_on_must_fit(folder, tmp_path, change, reason):
    export(tmp_path / "other", replace(HEADER, **change))
    with pytest.raises(InputError, match=reason):
        hold_out(CodeDataset(folder), str(tmp_path / "other"))


@pytest.mark.parametrize(
    "splits,source", [(("train", "test"), "s" * 64), (("all", "test"), "t"), (("all", "train"), "t")]
)
def test_codes_of_images_that_are_learnt_validate_nothing(tmp_path, splits, source):
    for name, change in (("learnt", {}), ("other", {"source": source})):
        export(tmp_path / name, replace(HEADER, split=splits[name == "other"], **change))
    with pytest.raises(
        InputError, match=r"other has images that .*learnt also has: .*, or give other `validation_codes`"
    ):
        hold_out(CodeDataset(tmp_path / "learnt"), str(tmp_path / "other"))


def test_the_tables_are_those_of_the_quantizer(tmp_path):
    tables = {"entries.0": torch.rand(300, 4), "phi": torch.rand(2)}
    export(tmp_path / "c", tables=tables)
    read = CodeDataset(tmp_path / "c").tables()
    assert read.keys() == tables.keys() and all(torch.equal(read[name], tables[name]) for name in tables)
    flip(tmp_path / "c" / "tables.safetensors", -1)
    with pytest.raises(InputError, match=r"tables\.safetensors is damaged"):
        CodeDataset(tmp_path / "c").tables()
    (tmp_path / "c" / "tables.safetensors").unlink()
    with pytest.raises(InputError, match=r"no tables\.safetensors"):
        CodeDataset(tmp_path / "c").tables()


def test_grids_that_share_a_codebook_have_a_table_each(tmp_path):
    book, codes = torch.rand(16, 4), draw_codes(LAYOUTS["residual"])
    header = replace(HEADER, grids=LAYOUTS["residual"])
    export(tmp_path / "c", header, lambda rows: shard_of(rows, codes), {"entries.0": book, "entries.1": book})
    assert all(torch.equal(table, book) for table in CodeDataset(tmp_path / "c").tables().values())


def test_a_quantizer_that_lists_no_entries_leaves_no_tables(folder):
    assert CodeDataset(folder).tables() == {} and not (folder / "tables.safetensors").exists()


def test_the_folder_holds_shards_tables_and_a_manifest_and_nothing_else(tmp_path):
    export(tmp_path / "c", tables={"entries.0": torch.rand(300, 4)})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        *(f"codes-0000{i}.safetensors" for i in range(3)), "manifest.json", "tables.safetensors",
    ]  # fmt: skip


def test_equal_exports_leave_equal_files(folder, tmp_path):
    export(tmp_path / "again")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()
    }


@pytest.fixture(params=["hw", "pyramid"])
def stopped(request, tmp_path):
    """An export that was killed when two of three shards were written: returns what starts it again."""
    layout = LAYOUTS[request.param]
    header, codes = replace(HEADER, grids=layout), draw_codes(layout)

    def die_at_the_third(rows):
        if rows.start == 20:
            raise KeyboardInterrupt
        return shard_of(rows, codes)

    def again():
        encoded = []
        export(tmp_path / "c", header, lambda rows: (encoded.append(rows.start), shard_of(rows, codes))[1])
        assert equal(CodeDataset(tmp_path / "c").batch(range(COUNT)).codes, codes)
        assert not (tmp_path / "c" / ".digests.json").exists()
        return encoded

    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "c", header, die_at_the_third)
    again.folder, again.header = tmp_path / "c", header
    return again


def test_a_killed_export_looks_unfinished_and_a_second_run_encodes_only_the_rest(stopped):
    with pytest.raises(InputError, match="not a complete code dataset"):
        CodeDataset(stopped.folder)
    assert stopped() == [20]


@pytest.mark.parametrize("change", [{"tokenizer_fingerprint": "e" * 64}, {"split": "test"}])
def test_another_export_into_an_unfinished_one_is_refused_with_the_difference(stopped, change):
    before = {path.name: path.read_bytes() for path in stopped.folder.iterdir()}
    with pytest.raises(InputError, match=f"unfinished codes made with a different {next(iter(change))}"):
        export(stopped.folder, replace(stopped.header, **change))
    assert {path.name: path.read_bytes() for path in stopped.folder.iterdir()} == before


def damage(path):
    flip(path, -1)


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"cut"), damage, os.unlink]
)
def test_a_damaged_shard_of_an_unfinished_export_is_made_again(stopped, spoil):
    spoil(stopped.folder / "codes-00001.safetensors")
    assert stopped() == [10, 20]


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"{}"])
def test_without_the_digests_of_an_unfinished_export_all_shards_are_made_again(stopped, content):
    path = stopped.folder / ".digests.json"
    path.unlink() if content is None else path.write_bytes(content)
    assert stopped() == [0, 10, 20]


def test_a_shard_is_hashed_once_when_it_is_written(tmp_path, monkeypatch):
    def refuse(*args):
        raise AssertionError("hashed again")

    monkeypatch.setattr("codegrid.data.digests.digest_of_file", refuse)
    monkeypatch.setattr("codegrid.data.shards.sha256", refuse)
    export(tmp_path / "c")


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_an_empty_shard_is_damaged(folder):
    (folder / "codes-00001.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"codes-00001\.safetensors is damaged"):
        CodeDataset(folder).batch([10])


@pytest.mark.parametrize("at", [0, 9, 200, -1])
def test_one_flipped_bit_of_a_shard_is_found_when_it_is_first_read_from(folder, at):
    dataset = CodeDataset(folder)
    flip(folder / "codes-00001.safetensors", at)  # after the data set was opened
    assert equal(dataset.batch([0, 20]).codes, rows_of(CODES, [0, 20]))
    for read in (lambda: dataset.batch([0, 10]), lambda: dataset[10], lambda: dataset.labels):
        with pytest.raises(InputError, match=r"codes-00001\.safetensors is damaged"):
            read()


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_shard_that_is_changed_while_it_is_read_from_is_as_it_was_or_refused(folder, in_memory, monkeypatch):
    monkeypatch.setattr("codegrid.data.codes.IN_MEMORY_BYTES", 2**30 * in_memory)
    dataset = CodeDataset(folder)
    dataset.batch(range(COUNT))
    path = folder / "codes-00001.safetensors"
    before = path.stat()
    flip(path, -1)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    if in_memory:
        os.truncate(path, 0)  # a page of a map behind the end would kill the process
        assert equal(dataset.batch([10]).codes, rows_of(CODES, [10]))
    else:
        with pytest.raises(InputError, match=r"codes-00001\.safetensors is damaged"):
            dataset.batch([10])


def test_codes_that_another_machine_encoded_otherwise_are_others(folder, tmp_path):
    export(tmp_path / "other", encode=lambda rows: shard_of(rows, (CODES[0].flip(0),)))
    ours, theirs = CodeDataset(folder), CodeDataset(tmp_path / "other")
    assert ours.header == theirs.header and ours.fingerprint() != theirs.fingerprint()


@pytest.mark.parametrize("name", ["codes-00001.safetensors", "tables.safetensors"])
def test_a_finished_export_whose_files_are_gone_is_one_to_go_on_with(tmp_path, name, capsys):
    tables = {"entries.0": torch.rand(300, 4)}
    export(tmp_path / "c", tables=tables)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()}
    provenance = {"dataset": "bars"}
    settings = ExportCodes(tokenizer="t", output=str(tmp_path / "c"))
    assert open_codes_folder(settings, HEADER, provenance).missing is None
    (tmp_path / "c" / name).unlink()
    with releasing():
        missing = open_codes_folder(settings, HEADER, provenance).missing
        assert (
            missing == [range(10, 20)] * name.startswith("codes") and f"but {name} is gone" in capsys.readouterr().out
        )
        write_codes(tmp_path / "c", HEADER, missing, map(shard_of, missing), provenance, tables)
    assert {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()} == expected


@pytest.mark.parametrize("on_demand", [False, True])  # in a worker, then
def test_a_damaged_shard_is_one_line_through_a_loader_too(folder, on_demand):
    dataset = CodeDataset(folder)
    dataset.on_demand = on_demand
    flip(folder / "codes-00002.safetensors", -1)
    batches = load_batches(dataset, in_order(COUNT, 10), num_workers=1)
    assert equal(next(batches).codes, rows_of(CODES, slice(10)))
    with pytest.raises(InputError, match=r"codes-00002\.safetensors is damaged"):
        list(batches)


def test_an_opened_data_set_reads_the_same_in_another_process(folder):
    dataset = CodeDataset(folder)
    dataset.batch(range(COUNT))
    copied = pickle.dumps(dataset)
    assert len(copied) < 10_000 and equal(pickle.loads(copied).batch(range(COUNT)).codes, CODES)


@pytest.mark.parametrize("word", ["num_images", "ffff", "ant", "{", "sha256", "codes-00001", "tables"])
def test_a_changed_word_of_the_manifest_is_found(folder, word):
    path = folder / "manifest.json"
    flip(path, path.read_text().index(word))
    with pytest.raises(InputError, match="damaged"):
        CodeDataset(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_manifest_that_is_not_one_is_refused(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        CodeDataset(folder)


def test_a_missing_shard_is_named(folder):
    (folder / "codes-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"no codes-00002\.safetensors"):
        CodeDataset(folder)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no folder .*nowhere"):
        CodeDataset(tmp_path / "nowhere")


def test_other_files_in_the_folder_are_left_alone_and_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        export(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_codes_behind_a_link_are_not_removed(folder, tmp_path):
    (tmp_path / "state").symlink_to(folder)
    remove_codes(tmp_path / "state")
    assert len(CodeDataset(folder).batch(range(COUNT)).labels) == COUNT
    remove_codes(folder)
    assert not folder.exists()


def test_the_manifest_says_what_the_codes_are(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == "codegrid codes 2" and manifest["provenance"] == {"dataset": "bars"}
    assert manifest["header"] == {
        "num_images": 25, "split": "train", "source": "s" * 64, "tokenizer_fingerprint": "f" * 64,
        "classes": ["ant", "bee"], "grids": [{"shape": [3, 5], "num_embeddings": 300}], "views": 1,
        "shift": 0, "flip": False, "view_seed": 0, "columns": {"labels": {"kind": "int", "shape": []}},
    }  # fmt: skip
    assert [shard["num_images"] for shard in manifest["shards"]] == [10, 10, 5]
    assert CodeHeader(**manifest["header"]) == HEADER


def test_a_nested_batch_is_cut_into_pieces_of_its_kind(folder):
    batch = CodeDataset(folder).batch([1, 2, 3, 4])
    batch = batch._replace(columns={**batch.columns, "file": ["a", "b", "c", "d"], "none": None})
    first, second = pieces_of((batch, [LABELS[:4], CODES[0][:4]]), 2)
    assert type(first[0]) is type(batch) and equal(first[0].codes, rows_of(CODES, [1, 2]))
    assert second[0].columns["file"] == ["c", "d"] and second[0].columns["none"] is None
    assert torch.equal(second[0].labels, LABELS[3:5]) and torch.equal(second[1][1], CODES[0][2:4])
    assert pieces_of(batch, 1) == [batch]


def test_each_epoch_meets_every_item_once_whatever_the_steps_it_is_cut_into():
    items = [item for step in StepSampler(10, 4, seed=3, start=0, stop=10) for item in step]
    epochs = [items[first : first + 10] for first in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and len(set(map(tuple, epochs))) == 4
    assert [item for step in StepSampler(10, 4, seed=3, start=7, stop=10) for item in step] == items[28:]
    shares = [list(StepSampler(10, 4, 3, 0, 10, rank, 2)) for rank in range(2)]
    assert [item for pair in zip(*shares, strict=True) for share in pair for item in share] == items
    assert [item for step in StepSampler(10, 4, seed=4, start=0, stop=10) for item in step] != items
