"""The export of codes, piece by piece: it leaves what encoding all images at once gives, however it was cut up."""

import json
import os
import weakref

import numpy as np
import pytest
import torch

from codegrid.data import CodeDataset
from codegrid.data.code_files import write_npz
from codegrid.data.codes import CodeHeader, CodeShard, shard_ranges
from codegrid.data.images import ImageDataset, to_float
from codegrid.data.sources import load_images
from codegrid.pipelines.generation.encoding import encode_ranges
from codegrid.pipelines.running.device import start_accelerator
from codegrid.stage1_vqvae import VQVAE

IMAGES, HEIGHT, WIDTH = 54, 3, 5  # the bars' training part, and the grid of their codes


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("codegrid.data.codes.SHARD_SIZE", 19)  # odd, as the labels alternate


@pytest.fixture(scope="module")
def twinned(small_run, tmp_path_factory):
    """A tokenizer in which the entry that is used most has a twin: some sites are tied, others are not."""
    folder = tmp_path_factory.mktemp("twinned") / "tokenizer"
    tokenizer = VQVAE.from_pretrained(small_run / "tokenizer")
    codes = CodeDataset(small_run / "codes").__getitems__(range(IMAGES)).codes
    first, *_, last = torch.bincount(codes.flatten(), minlength=16).argsort(descending=True).tolist()
    tokenizer.quantizer.codebook.data[last] = tokenizer.quantizer.codebook.data[first]
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def at_once(twinned, bars_file):
    """Codes and ties of all images, encoded together."""
    images = load_images("npz", bars_file, "train")
    found = VQVAE.from_pretrained(twinned).encode_marking_ties(to_float(images.images))
    assert 0 < found.tied.sum() < found.tied.numel()
    return found


@pytest.fixture
def export(bars_file, twinned, tmp_path, run_script):
    """Export the bars' codes into a folder of this name: returns the folder and what was printed last."""

    def call(name, *flags, tokenizer=twinned):
        data = ("--dataset", "npz", "--data-root", bars_file)
        result = run_script("export_codes", *data, "--tokenizer", tokenizer, "--output", tmp_path / name, *flags)
        assert result.code == 0, result.err
        return tmp_path / name, result.out.strip().splitlines()[-1]

    return call


def ties_of(folder):
    return json.loads((folder / "manifest.json").read_text())["provenance"]["ties"]


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_codes_do_not_depend_on_the_batch_size_and_ties_are_counted(batch_size, export, at_once, bars_file):
    folder, told = export("codes", "--batch-size", batch_size)
    exported = CodeDataset(folder).__getitems__(range(IMAGES))
    assert torch.equal(exported.codes[~at_once.tied], at_once.codes[~at_once.tied])
    assert torch.equal(exported.labels, load_images("npz", bars_file, "train").labels)
    assert len(list(folder.glob("codes-*"))) == 3
    assert ties_of(folder) == at_once.tied.sum()
    assert told.endswith(
        f"; at {at_once.tied.sum()} of {IMAGES * HEIGHT * WIDTH} sites two entries tie to within rounding"
    )


def test_without_ties_nothing_is_said_of_them(export, tmp_path):
    torch.manual_seed(0)
    tokenizer = VQVAE(1, (12, 20), hidden_channels=8, num_embeddings=2, embedding_dim=4)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    folder, told = export("codes", tokenizer=tmp_path / "tokenizer")
    assert told.endswith("codes out of 2") and ties_of(folder) == 0


def test_plain_codes_of_several_shards_are_those_of_the_code_dataset(export):
    codes, plain = CodeDataset(export("codes")[0]), export("plain", "--format", "npz")[0]
    assert sorted(path.name for path in plain.iterdir()) == ["codes.npz", "run.json"]
    arrays = np.load(plain / "codes.npz", allow_pickle=False)
    assert arrays.files == ["codes", "labels"]
    assert arrays["codes"].dtype == arrays["labels"].dtype == np.int64
    assert np.array_equal(arrays["codes"], codes.__getitems__(range(IMAGES)).codes)
    assert np.array_equal(arrays["labels"], codes.labels)
    record = json.loads((plain / "run.json").read_text())
    assert record["finished"] and record["ties"] == ties_of(codes.folder)


def test_plain_codes_that_could_not_be_written_leave_nothing(export, tmp_path, monkeypatch):
    def fill(self, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="no room is left"):
        patch.setattr("zipfile._ZipWriteFile.write", fill)
        export("plain", "--format", "npz")
    assert not (tmp_path / "plain").exists()
    assert (export("plain", "--format", "npz")[0] / "codes.npz").exists()


def test_an_export_that_goes_on_counts_the_ties_of_what_was_there(export, at_once):
    folder, told = export("codes")
    (folder / "manifest.json").unlink()
    (folder / "codes-00001.safetensors").unlink()
    before = (folder / "codes-00000.safetensors").stat().st_mtime_ns
    assert export("codes") == (folder, told)
    assert ties_of(folder) == at_once.tied.sum()
    assert (folder / "codes-00000.safetensors").stat().st_mtime_ns == before


class Watched(ImageDataset):
    """Notes how many images are asked for at once."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.requests = []

    def __getitems__(self, indices):
        self.requests.append(len(indices))
        return super().__getitems__(indices)


def test_no_more_than_a_batch_of_images_is_held_and_each_shard_comes_once_it_is_encoded(small_run):
    images = Watched(torch.randint(0, 256, (IMAGES, 1, 12, 20), dtype=torch.uint8))
    tokenizer = VQVAE.from_pretrained(small_run / "tokenizer")
    encoded = []
    shards = encode_ranges(
        tokenizer, images, shard_ranges(IMAGES), 8, 0, start_accelerator("cpu", with_prose=False), encoded.append
    )
    next(shards)
    assert images.requests == encoded == [8, 8, 3]
    assert [len(shard.codes) for shard in shards] == [19, 16]
    assert max(images.requests) == 8 and sum(images.requests) == sum(encoded) == IMAGES


class OnDisk(ImageDataset):
    """As if it did not fit in memory: worker processes read it, and each leaves a file with its number."""

    paths = None

    def __getitems__(self, indices):
        (self.paths / str(os.getpid())).touch()
        return super().__getitems__(indices)


def test_worker_processes_start_once_for_all_shards(small_run, tmp_path):
    images = OnDisk(torch.randint(0, 256, (IMAGES, 1, 12, 20), dtype=torch.uint8))
    images.paths = tmp_path
    tokenizer = VQVAE.from_pretrained(small_run / "tokenizer")
    accelerator = start_accelerator("cpu", with_prose=False)
    shards = list(encode_ranges(tokenizer, images, shard_ranges(IMAGES), 8, 2, accelerator))
    assert len(shards) == 3 and len(list(tmp_path.iterdir())) == 2


def test_plain_codes_are_let_go_as_they_are_written(tmp_path):
    header = CodeHeader(57, [{"height": 64, "width": 64, "num_embeddings": 512}], ["a"], "train", "f", "s")
    written = []

    def shards():
        for numbers in shard_ranges(57):
            assert sum(codes() is not None for codes in written) <= 1  # the last one, at most
            codes = torch.full((len(numbers), 64, 64), numbers.start)
            written.append(weakref.ref(codes))
            yield CodeShard(codes, torch.zeros(len(numbers), dtype=torch.int64), 1)
            del codes

    assert write_npz(tmp_path / "codes.npz", header, shards()) == 3
    assert np.load(tmp_path / "codes.npz")["codes"][:, 0, 0].tolist() == [0] * 19 + [19] * 19 + [38] * 19
