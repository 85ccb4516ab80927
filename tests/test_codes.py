"""The code dataset: what is written is read, what is damaged or unfinished is not.

Shapes: n images, h w code grid.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from codegrid.data import CodeDataset
from codegrid.data.codes import CodeHeader, CodeShard, missing_ranges, smallest_dtype, write_codes
from codegrid.errors import InputError

HEADER = CodeHeader(
    num_images=25,
    grids=[{"height": 3, "width": 5, "num_embeddings": 300}],
    classes=["ant", "bee"],
    split="train",
    tokenizer_fingerprint="f" * 64,
    source="s" * 64,
)
CODES = torch.from_numpy(np.random.default_rng(0).integers(0, 300, (25, 3, 5)))
LABELS = torch.arange(25) % 2


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("codegrid.data.codes.SHARD_SIZE", 10)


def encode(numbers):
    """One tie in the first shard, two in the second, three in the third."""
    return CodeShard(CODES[numbers.start : numbers.stop], LABELS[numbers.start : numbers.stop], numbers.start // 10 + 1)


def export(folder, header=HEADER, encode=encode):
    missing = missing_ranges(folder, header)
    return write_codes(folder, header, missing, map(encode, missing), {"dataset": "bars"})


@pytest.fixture
def folder(tmp_path):
    export(tmp_path / "codes")
    return tmp_path / "codes"


def test_codes_and_labels_are_read_in_any_order_across_shards(folder):
    dataset = CodeDataset(folder)
    chosen = [24, 0, 9, 10, 10]
    batch = dataset.__getitems__(chosen)
    assert torch.equal(batch.codes, CODES[chosen]) and torch.equal(batch.labels, LABELS[chosen])
    assert batch.codes.dtype == torch.int64
    assert torch.equal(dataset[11].codes, CODES[11])
    assert len(dataset) == 25 and dataset.grid_shape == (3, 5) and dataset.num_embeddings == 300
    assert dataset.classes == ["ant", "bee"] and np.array_equal(dataset.labels, LABELS)


def test_the_folder_holds_shards_and_a_manifest_and_nothing_else(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"codes-0000{i}.safetensors" for i in range(3)), "manifest.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "num_embeddings,dtype", [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_codes_take_the_smallest_type_that_holds_them(tmp_path, num_embeddings, dtype):
    assert smallest_dtype(num_embeddings) == dtype
    header = replace(HEADER, grids=[{**HEADER.grids[0], "num_embeddings": num_embeddings}])
    largest = torch.full((25, 3, 5), num_embeddings - 1)
    export(tmp_path / "c", header, lambda numbers: encode(numbers)._replace(codes=largest[: len(numbers)]))
    assert load_file(tmp_path / "c" / "codes-00000.safetensors")["codes.0"].dtype == dtype
    assert torch.equal(CodeDataset(tmp_path / "c").__getitems__(range(25)).codes, largest)


def test_codes_without_labels_have_none(tmp_path):
    header = replace(HEADER, classes=[])
    export(tmp_path / "c", header, lambda numbers: encode(numbers)._replace(labels=None))
    dataset = CodeDataset(tmp_path / "c")
    assert dataset.labels is None and dataset[3].labels is None


def test_a_killed_export_looks_unfinished_and_a_second_run_encodes_only_the_rest(tmp_path):
    calls = []

    def die_at_the_third(numbers):
        calls.append(numbers.start)
        if numbers.start == 20:
            raise KeyboardInterrupt
        return encode(numbers)

    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "c", encode=die_at_the_third)
    with pytest.raises(InputError, match="not a whole code dataset"):
        CodeDataset(tmp_path / "c")
    calls.clear()
    assert export(tmp_path / "c", encode=lambda n: (calls.append(n.start), encode(n))[1]) == 1 + 2 + 3
    assert calls == [20]
    assert torch.equal(CodeDataset(tmp_path / "c").__getitems__(range(25)).codes, CODES)


def test_another_export_into_an_unfinished_one_is_refused_with_the_difference(folder):
    (folder / "manifest.json").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="unfinished codes that were made with another tokenizer_fingerprint"):
        export(folder, replace(HEADER, tokenizer_fingerprint="e" * 64))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def note_ties(path, **noted):
    """Replace what a shard tells of its ties."""
    with safe_open(path, "np") as shard:
        metadata = {name: value for name, value in shard.metadata().items() if name != "ties"}
    save_file(load_file(path), path, {**metadata, **noted})


@pytest.mark.parametrize("noted", [{}, {"ties": "many"}])
def test_a_shard_that_does_not_tell_its_ties_is_made_again(folder, noted):
    (folder / "manifest.json").unlink()
    note_ties(folder / "codes-00001.safetensors", **noted)
    assert missing_ranges(folder, HEADER) == [range(10, 20)]
    assert export(folder) == 1 + 2 + 3


def test_shards_that_do_not_tell_their_ties_are_still_those_of_their_export(folder):
    (folder / "manifest.json").unlink()
    for path in folder.iterdir():
        note_ties(path)
    with pytest.raises(InputError, match="another split"):
        missing_ranges(folder, replace(HEADER, split="test"))


@pytest.mark.parametrize("content", [b"", b"cut"])
def test_a_damaged_shard_of_an_unfinished_export_is_made_again(folder, content):
    (folder / "manifest.json").unlink()
    (folder / "codes-00001.safetensors").write_bytes(content)
    export(folder)
    assert torch.equal(CodeDataset(folder).__getitems__(range(25)).codes, CODES)


def test_an_empty_shard_is_damaged(folder):
    (folder / "codes-00001.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"codes-00001\.safetensors is damaged"):
        CodeDataset(folder)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("at", [0, 9, 200, -1])
def test_one_flipped_bit_of_a_shard_is_found(folder, at):
    flip(folder / "codes-00001.safetensors", at)
    with pytest.raises(InputError, match=r"codes-00001\.safetensors is damaged"):
        CodeDataset(folder)


@pytest.mark.parametrize("word", ["num_images", "ffff", "ant", "{", "sha256", "codes-00001"])
def test_a_changed_word_of_the_manifest_is_found(folder, word):
    path = folder / "manifest.json"
    flip(path, path.read_text().index(word))
    with pytest.raises(InputError, match="damaged"):
        CodeDataset(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_manifest_that_is_none_is_refused(folder, content):
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


def test_the_manifest_says_what_the_codes_are(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["header"]["tokenizer_fingerprint"] == "f" * 64
    assert [shard["num_images"] for shard in manifest["shards"]] == [10, 10, 5]
    assert manifest["provenance"] == {"dataset": "bars", "ties": 1 + 2 + 3}
