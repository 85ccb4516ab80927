"""Data sets that are downloaded: read as torchvision reads them, but nothing in their files is run."""

import hashlib
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, MNIST

from codegrid.data.sources import load_images
from codegrid.errors import InputError

NAMES = ["train_a", "train_b", "test_a", "meta"]


class RunsACommand:
    """A pickle of this writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def cifar_batch(seed, count=5):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": pixels, "labels": random.integers(0, 3, count).tolist(), "batch_label": f"batch {seed}"}


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder of CIFAR-10, with two small training files, and the checksums that are expected of them."""
    files = {name: cifar_batch(seed) for seed, name in enumerate(NAMES[:3])}
    files["meta"] = {"label_names": ["cat", "dog", "eel"]}
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    sums = {}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [["train_a", sums["train_a"]], ["train_b", sums["train_b"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_a", sums["test_a"]]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "meta", "key": "label_names", "md5": sums["meta"]})

    def fail(*args, **options):
        raise OSError("no route to the host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    return tmp_path


@pytest.mark.parametrize("split,seeds", [("train", (0, 1)), ("test", (2,)), ("all", (0, 1, 2))])
def test_the_files_of_cifar_are_read(cifar, split, seeds):
    batches = [cifar_batch(seed) for seed in seeds]
    images = load_images("cifar10", cifar, split)
    pixels = np.concatenate([batch["data"].reshape(-1, 3, 32, 32) for batch in batches])
    assert np.array_equal(images.images, pixels) and images.classes == ["cat", "dog", "eel"]
    assert images.labels.tolist() == [label for batch in batches for label in batch["labels"]]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_cifar_with_another_checksum_is_not_unpickled(cifar, tmp_path, name):
    (cifar / CIFAR10.base_folder / name).write_bytes(pickle.dumps(RunsACommand(tmp_path / "ran")))
    with pytest.raises(InputError, match=r"cannot be downloaded .*: put its files there"):
        load_images("cifar10", cifar, "test" if name == "test_a" else "train")
    assert not (tmp_path / "ran").exists()


def idx(array):
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """A function that writes the test part of MNIST."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
            (raw / name).write_bytes(b"")

    def write(images=b"", labels=b""):
        (raw / "t10k-images-idx3-ubyte").write_bytes(images if isinstance(images, bytes) else idx(images))
        (raw / "t10k-labels-idx1-ubyte").write_bytes(labels if isinstance(labels, bytes) else idx(labels))
        return tmp_path

    return write


DIGITS = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
LABELS = np.array([7, 0, 9], dtype=np.uint8)


def test_mnist_is_read_as_torchvision_reads_it(mnist):
    root = mnist(DIGITS, LABELS)
    ours, theirs = load_images("mnist", root, "test"), MNIST(root, train=False)
    assert torch.equal(ours.images[:, 0], theirs.data) and torch.equal(ours.labels, theirs.targets)
    assert ours.classes == [name.split(" ")[0] for name in theirs.classes] == [str(digit) for digit in range(10)]


def test_what_old_versions_of_torchvision_left_is_not_unpickled(mnist, tmp_path):
    root = mnist(DIGITS, LABELS)
    (root / "MNIST" / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((RunsACommand(tmp_path / "ran"), 0), root / "MNIST" / "processed" / name)
    assert torch.equal(load_images("mnist", root, "test").images[:, 0], torch.from_numpy(DIGITS))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "images,labels",
    [
        (b"", LABELS),
        (b"no numbers at all", LABELS),
        (idx(DIGITS)[:-1], LABELS),
        (struct.pack(">IIII", 0x803, 2**31, 2**31, 2**31) + bytes(8), LABELS),
        (struct.pack(">IIII", 0xA03, 3, 28, 28) + bytes(3 * 28 * 28), LABELS),
        (DIGITS, LABELS[:2]),
        (DIGITS, LABELS + 1),
        (DIGITS[:0], LABELS[:0]),
    ],
)
def test_damaged_idx_files_are_refused(mnist, images, labels):
    with pytest.raises(InputError, match="MNIST"):
        load_images("mnist", mnist(images, labels), "test")


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nTried a mirror")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", fail)
    with pytest.raises(InputError, match=r"MNIST is not in .* cannot be downloaded .*put its files there"):
        load_images("mnist", tmp_path, "train")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    with pytest.raises(InputError, match=rf"MNIST is not in {tmp_path}/caches/codegrid and"):
        load_images("mnist")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", fail)
    with pytest.raises(InputError, match=r"no home folder to download data into: give `data_root`"):
        load_images("mnist")
