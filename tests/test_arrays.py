"""Images in files of arrays that other programs wrote: what they mean is told from their names, shapes and values."""

import numpy as np
import pytest
import torch

from codegrid.data.sources import load_images
from codegrid.errors import InputError

GREY = np.random.default_rng(0).integers(0, 256, (20, 6, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (20, 6, 8, 3), dtype=np.uint8)
LABELS = np.arange(20) % 2
FORMS = {
    "grey": (GREY, GREY[:, None]),
    "grey, a channel behind": (GREY[..., None], GREY[:, None]),
    "grey, a channel ahead": (GREY[:, None], GREY[:, None]),
    "colour, channels behind": (COLOUR, COLOUR.transpose(0, 3, 1, 2)),
    "colour, channels ahead": (COLOUR.transpose(0, 3, 1, 2), COLOUR.transpose(0, 3, 1, 2)),
    "other whole numbers": (GREY.astype(">i8"), GREY[:, None]),
    "floats up to 1": (GREY / 255, GREY[:, None]),
    "floats up to 255": (GREY.astype(np.float16), GREY[:, None]),
    "true and false": (GREY > 99, 255 * (GREY > 99)[:, None].astype(np.uint8)),
}


@pytest.mark.parametrize("images,expected", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_images_of_any_usual_form_are_read_as_bytes(tmp_path, images, expected, name):
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, images)
    read = load_images(str(tmp_path / name), None, "all")
    assert np.array_equal(read.images, expected) and read.labels is None and read.classes == []


MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")
KERAS = ("x_train", "y_train", "x_test", "y_test")


@pytest.mark.parametrize(
    "names,labels", [(MEDMNIST, LABELS[:, None]), (KERAS, LABELS.astype(np.uint8))], ids=["MedMNIST", "Keras"]
)
def test_the_parts_of_known_files_are_their_own(tmp_path, names, labels):
    parts = (GREY, labels + 1, GREY[:7] // 2, labels[:7])
    np.savez(tmp_path / "a.npz", **dict(zip(names, parts, strict=True)), val_images=GREY[:3], val_labels=labels[:3])
    train, test, both = (load_images("npz", tmp_path / "a.npz", split) for split in ("train", "test", "all"))
    assert np.array_equal(train.images[:, 0], GREY) and np.array_equal(test.images[:, 0], GREY[:7] // 2)
    assert train.labels.tolist() == (LABELS + 1).tolist() and test.labels.tolist() == LABELS[:7].tolist()
    assert train.classes == test.classes == ["0", "1", "2"] and len(both) == 27
    assert torch.equal(both.labels, torch.cat([train.labels, test.labels]))
    assert all("; left out: 2 other arrays (val_images, val_labels)" in str(each.found) for each in (train, both))


def test_a_part_for_validation_is_the_test_where_there_is_no_other(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=GREY, x_val=GREY[:7])
    assert len(load_images("npz", tmp_path / "a.npz", "test")) == 7


def test_labels_that_are_names_are_the_classes(tmp_path):
    np.savez(tmp_path / "a.npz", images=GREY, labels=np.array(["owl", "cat"])[LABELS])
    images = load_images("npz", tmp_path / "a.npz", "all")
    assert images.classes == ["cat", "owl"] and images.labels.tolist() == (1 - LABELS).tolist()


def with_value(value, dtype=np.float32):
    images = (GREY / 255).astype(dtype)
    images[3, 2, 1] = value
    return images


REFUSED = {
    "missing values": ({"x": with_value(np.nan)}, r"a\.npz: x holds nan"),
    "endless values": ({"x": with_value(np.inf)}, "x holds inf"),
    "a range around zero": ({"x": GREY / 127.5 - 1}, "x holds -1"),
    "16 bits": ({"x": GREY.astype(np.uint16) * 257}, "x holds 65535"),
    "a little above 1": ({"x": with_value(1.5)}, "the largest value is 1.5"),
    "zeros and ones": ({"x": GREY // 128}, "the largest value is 1,"),
    "complex numbers": ({"x": GREY.astype(complex)}, "of type complex128"),
    "parts of two types": ({"x_train": GREY, "x_test": GREY / 255}, "of different types"),
    "a single picture": ({"x": COLOUR[0]}, "may be a single picture"),
    "pictures without height": ({"x": GREY[:, :0]}, r"has the shape \(20, 0, "),
    "four bands": ({"x": GREY.reshape(20, 3, 4, 4)[:, :2]}, r"has the shape \(20, 2, 4, 4\)"),
    "channels at both ends": ({"x": GREY.reshape(20, 3, 4, 4)[..., :3]}, r"has the shape \(20, 3, 4, 3\)"),
    "unknown names": ({"a": GREY, "b": LABELS}, "holds a, b: name the images one of arr_0, images"),
    "several labels an image": ({"x": GREY, "y": np.eye(20, 4, dtype=int)}, r"y has the shape \(20, 4\)"),
    "labels below zero": ({"x": GREY, "y": LABELS - 1}, "y holds -1"),
    "labels of one part": (
        {"x_train": GREY, "x_test": GREY, "y_train": LABELS},
        "holds y_train, but no labels for the other",
    ),
}


@pytest.mark.parametrize("arrays,reason", REFUSED.values(), ids=REFUSED)
def test_what_may_be_meant_otherwise_is_refused_by_name(tmp_path, arrays, reason):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=reason):
        load_images("npz", tmp_path / "a.npz", "train")


@pytest.mark.parametrize("content", [b"", b"no array", np.lib.format.magic(1, 0) + b"\x10\x00{'descr': '|u1'}"])
def test_a_file_that_is_no_array_is_refused(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputError, match="not a readable npy file"):
        load_images("npz", tmp_path / "a.npy", "train")
