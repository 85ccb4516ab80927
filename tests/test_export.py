"""The export of codes, piece by piece: it leaves what encoding all images at once gives, however it was cut up."""

import json
import os

import numpy as np
import pytest
import torch

from codegrid import load
from codegrid.data.code_writer import shard_ranges
from codegrid.data.codes import CodeDataset
from codegrid.data.images import ImageDataset, to_float
from codegrid.data.sources import load_images
from codegrid.errors import InputError
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.encoding import encode_ranges, export_codes
from codegrid.pipelines.running.device import start_accelerator
from codegrid.pipelines.running.settings import Compute

IMAGES = 54  # the bars' training part
ALL = range(IMAGES)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("codegrid.data.code_writer.SHARD_SIZE", 19)  # odd, as the labels alternate


@pytest.fixture
def export(bars_file, small_run, tmp_path):
    """Export the bars' codes into a folder of this name, and return it."""

    def call(name, **settings):
        folder = tmp_path / name
        models = {"tokenizer": str(small_run / "tokenizer"), "output": str(folder)}
        export_codes(ExportCodes(dataset="npz", data_root=str(bars_file), **models, **settings))
        return folder

    return call


@pytest.fixture(scope="module")
def at_once(small_run, bars_file):
    """The codes of all images, encoded together."""
    images = load_images("npz", bars_file, "train")
    return load(small_run / "tokenizer").encode(to_float(images.images))


def assert_equal(codes, expected):
    assert len(codes) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(codes, expected, strict=True))


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_codes_do_not_depend_on_the_batch_size(batch_size, export, at_once, bars_file, small_run):
    folder = export("codes", batch_size=batch_size)
    exported, tokenizer = CodeDataset(folder), load(small_run / "tokenizer")
    assert_equal(exported.batch(ALL).codes, at_once)
    assert torch.equal(exported.batch(ALL).labels, load_images("npz", bars_file, "train").labels)
    assert len(list(folder.glob("codes-*"))) == 3
    assert exported.layout == tokenizer.layout and exported.classes == ["0", "1"]
    assert exported.header.tokenizer_fingerprint == tokenizer.fingerprint()
    assert torch.equal(exported.tables()["entries.0"], tokenizer.quantizer.entries(0))


def test_plain_codes_of_several_shards_are_those_of_the_code_dataset(export):
    codes, plain = CodeDataset(export("codes")), export("plain", format="npz")
    assert sorted(path.name for path in plain.iterdir()) == ["codes.npz", "run.json", "settings.yaml"]
    arrays = np.load(plain / "codes.npz", allow_pickle=False)
    assert arrays.files == ["codes", "labels"]
    assert arrays["codes"].dtype == arrays["labels"].dtype == np.int64
    assert np.array_equal(arrays["codes"], *codes.batch(ALL).codes)
    assert np.array_equal(arrays["labels"], codes.labels)
    assert json.loads((plain / "run.json").read_text())["finished"]


@pytest.mark.parametrize(
    "form,method", [("npz", "zipfile._ZipWriteFile.write"), ("parquet", "pyarrow.parquet.ParquetWriter.write_table")]
)
def test_plain_codes_that_could_not_be_written_leave_no_half_and_are_not_encoded_again(
    form, method, export, tmp_path, monkeypatch
):
    pytest.importorskip("pyarrow")

    def fill(self, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(method, fill)
        export("plain", format=form)
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {"run.json", "settings.yaml", "state"}
    monkeypatch.setattr("codegrid.pipelines.generation.encoding.to_float", lambda *batch: pytest.fail("encoded again"))
    plain = export("plain", format=form)
    assert {path.name for path in plain.iterdir()} == {"run.json", "settings.yaml", f"codes.{form}"}


def test_plain_codes_go_on_where_they_were_stopped(export, monkeypatch):
    whole = export("whole", format="npz")
    asked = []

    def stop_early(tokenizer, images, ranges, *rest):
        asked.append(ranges)
        for number, shard in enumerate(encode_ranges(tokenizer, images, ranges, *rest)):
            if number == 2:
                raise RuntimeError("stopped")
            yield shard

    monkeypatch.setattr("codegrid.pipelines.generation.encoding.encode_ranges", stop_early)
    with pytest.raises(RuntimeError, match="stopped"):
        export("plain", format="npz")
    plain = export("plain", format="npz")
    assert asked == [shard_ranges(IMAGES), shard_ranges(IMAGES)[2:]]
    arrays, expected = np.load(plain / "codes.npz"), np.load(whole / "codes.npz")
    assert all(np.array_equal(arrays[name], expected[name]) for name in ("codes", "labels"))
    with pytest.raises(InputError, match="was made with"):
        export("plain", format="parquet")


def test_an_export_that_goes_on_makes_only_what_is_missing(export, at_once):
    folder = export("codes")
    whole = (folder / "manifest.json").read_bytes()
    digests = {record["file"]: record["sha256"] for record in json.loads(whole)["shards"]}
    (folder / ".digests.json").write_text(json.dumps(digests))  # as a stopped export leaves it
    (folder / "manifest.json").unlink()
    (folder / "codes-00001.safetensors").unlink()
    before = (folder / "codes-00000.safetensors").stat().st_mtime_ns
    assert export("codes") == folder
    assert (folder / "manifest.json").read_bytes() == whole
    assert_equal(CodeDataset(folder).batch(ALL).codes, at_once)
    assert (folder / "codes-00000.safetensors").stat().st_mtime_ns == before


class Watched(ImageDataset):
    """Notes how many images are asked for at once."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.requests = []

    def batch(self, indices):
        self.requests.append(len(indices))
        return super().batch(indices)


def random_images(kind):
    return kind(torch.randint(0, 256, (IMAGES, 1, 12, 20), dtype=torch.uint8))


def test_no_more_than_a_batch_of_images_is_held_and_each_shard_comes_once_it_is_encoded(small_run):
    images, encoded, alone = random_images(Watched), [], start_accelerator(Compute(device="cpu"), with_prose=False)
    tokenizer = load(small_run / "tokenizer")
    shards = encode_ranges(tokenizer, images, shard_ranges(IMAGES), 8, 0, alone, encoded.append)
    next(shards)
    assert images.requests == encoded == [8, 8, 3]
    assert [{len(grid) for grid in shard.codes} for shard in shards] == [{19}, {16}]
    assert max(images.requests) == 8 and sum(images.requests) == sum(encoded) == IMAGES


class OnDisk(ImageDataset):
    """As if it did not fit in memory: worker processes read it, and each leaves a file with its number."""

    on_demand = True
    folder = None

    def batch(self, indices):
        (self.folder / str(os.getpid())).touch()
        return super().batch(indices)


def test_worker_processes_start_once_for_all_shards(small_run, tmp_path):
    images, alone = random_images(OnDisk), start_accelerator(Compute(device="cpu"), with_prose=False)
    images.folder = tmp_path
    tokenizer = load(small_run / "tokenizer")
    shards = list(encode_ranges(tokenizer, images, shard_ranges(IMAGES), 8, 2, alone))
    assert len(shards) == 3 and len(list(tmp_path.iterdir())) == 2
