"""Folders of pictures: which folders are parts and which classes, what is left out, and that all of it is told."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from codegrid.data.images import ImageDataset
from codegrid.data.listing import list_folder
from codegrid.data.loading import in_order, load_batches
from codegrid.data.sources import load_images
from codegrid.errors import InputError
from codegrid.file_names import natural_key, printable


def plant(root, *names):
    """Write small pictures, each of another shade, and files of text for names of other endings."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".csv", ".txt"):
            path.write_text("file,label\n1.png,cat\n2.png,dog\n")
        else:
            Image.new("L", (4, 4), number).save(path, "PNG")
    return root


def load(root, split="train", **options):
    return load_images("imagefolder", root, split, **options)


def files_of(root, **options):
    """The files of both parts."""
    return sorted(load(root, **options).files + load(root, "test", **options).files, key=natural_key)


@pytest.mark.parametrize(
    "train,test",
    [("Train", "Test"), ("TRAIN", "val"), ("training", "Valid"), ("train_set", "testing"), ("train2017", "val2017"),
     ("Training Images", "validation"), ("train", "dev")],
)  # fmt: skip
def test_parts_are_parts_in_any_spelling(tmp_path, train, test):
    plant(tmp_path, f"{train}/cat/1.png", f"{train}/dog/2.png", f"{train}/dog/3.png", f"{test}/cat/4.png",
          f"{test}/dog/5.png")  # fmt: skip
    parts = [load(tmp_path, split) for split in ("train", "test")]
    assert [len(part) for part in parts] == [3, 2] and parts[0].classes == parts[1].classes == ["cat", "dog"]
    assert str(parts[0].found) == f"{tmp_path}, train: 3 images in 2 classes (cat 1, dog 2); test: 2 images"


def test_of_several_parts_the_test_part_is_tested_on_and_the_rest_left_out(tmp_path):
    root = plant(tmp_path, "train/1.png", "Val/2.png", "Test/3.png", "masks/4.png", "overview.png")
    assert load(root, "test").files == ["Test/3.png"]
    assert "left out: 3 beside the parts (Val, masks, overview.png)" in str(load(root).found)


@pytest.mark.parametrize("part", ["train", "Training"])
def test_a_training_part_that_is_alone_is_the_whole(tmp_path, part):
    (tmp_path / "labels").mkdir()
    images = load(plant(tmp_path, *(f"{part}/{name}/{i}.png" for name in ("a", "b") for i in range(10))))
    assert images.classes == ["a", "b"]
    assert str(images.found).endswith("; test: 2 images; left out: 1 without pictures (labels); test is held out")


def test_an_empty_folder_is_no_part(tmp_path):
    (tmp_path / "test").mkdir()
    assert load(plant(tmp_path, *(f"{name}/{i}.png" for name in "ab" for i in range(10)))).classes == ["a", "b"]


@pytest.mark.parametrize(
    "names,reason",
    [
        (("test/cat/1.png",), "holds test, but no part to train on: give .*test as `data_root`, or add train"),
        (("Train/1.png", "cat/2.png"), "holds Train, the name of a part, beside cat, so that it may be a part or a"),
        (("valid/1.png", "invalid/2.png"), "holds valid, the name of a part, beside invalid"),
        (("train/1.png", "3.png"), "holds train, the name of a part, beside 3.png"),
        (("train/1.png", "val/2.png", "valid/3.png"), "holds val and valid, two names of one part"),
        (("train/cat/1.png", "test/dog/1.png"), r"have different class folders \(cat is in one of them only\)"),
        (("cat/train/1.png", "cat/test/2.png"), r"cat holds parts \(train, ...\) inside of what would be a class"),
        (("all/cat/1.png", "all/dog/2.png"), "holds one folder, all, .*: move them up, or give .*all as `data_root`"),
        (("cat/1.png", "2.png"), r"pictures both loose \(2.png\) and in folders \(cat\)"),
        (("a.txt", "b.csv", "c.csv"), r"no pictures in .* \(left out: 3 with other endings\)"),
    ],
)
def test_what_can_be_meant_in_two_ways_is_refused(tmp_path, names, reason):
    with pytest.raises(InputError, match=reason):
        load(plant(tmp_path, *names))


def test_what_people_did_not_put_there_is_not_learnt(tmp_path):
    root = plant(
        tmp_path, "cat/1.png", "cat/2.png", "cat/.ipynb_checkpoints/1-checkpoint.png", "cat/._1.png",
        "__MACOSX/cat/1.png", "cat/@eaDir/2.png", "cat/notes.txt", "cat/pure.svg", "Thumbs.db",
    )  # fmt: skip
    (root / "empty").mkdir()
    assert files_of(root) == ["cat/1.png", "cat/2.png"]
    line = str(load(root).found)
    assert "5 hidden (Thumbs.db, __MACOSX, cat/._1.png, …)" in line
    assert "2 with other endings (.svg, .txt)" in line and "1 without pictures (empty)" in line


def test_a_class_may_be_a_link_and_other_links_to_folders_are_left_out(tmp_path):
    root, elsewhere = plant(tmp_path / "root", "cat/1.png"), plant(tmp_path / "elsewhere", "2.png", "deeper/3.png")
    for link, target in {"dog": elsewhere, "cat/more": elsewhere, "again": root / "cat", "all": root, "self": "self",
                         "cat/gone.png": "/nowhere.png"}.items():  # fmt: skip
        (root / link).symlink_to(target)
    assert files_of(root) == ["cat/1.png", "dog/2.png", "dog/deeper/3.png"]
    line = str(load(root).found)
    assert "3 linked (again, all, cat/more)" in line and "2 that are not files (cat/gone.png, self)" in line


def test_a_folder_that_may_not_be_read_does_not_shift_the_numbers_of_classes(tmp_path, monkeypatch):
    plant(tmp_path, "ant/1.png", "bee/2.png", "bee/deep/3.png")
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"deep cannot be read \(.*Permission denied.*\): allow it"):
        load(tmp_path)


def test_a_table_that_names_the_pictures_is_pointed_out(tmp_path):
    plant(tmp_path, "1.png", "2.png", "3.png", "labels.csv")
    (tmp_path / "README.txt").write_text("Photos, taken in 2 places.")
    notes = [part for part in str(load(tmp_path).found).split("; ") if "names pictures" in part]
    assert notes == ["labels.csv names pictures, but is not read: labels come from folders only"]


def test_many_classes_are_told_by_their_range(tmp_path):
    plant(tmp_path, *(f"c{name}/{i}.png" for name in range(12) for i in range(1 + name % 2)))
    assert re.search(r"images in 12 classes of \d to 2;", str(load(tmp_path).found))


def test_pictures_and_classes_stand_in_natural_order(tmp_path):
    plant(tmp_path, *(f"{name}/frame_{i}.png" for name in ("10", "9", "1a") for i in (10, 9, 1, 100)))
    plant(tmp_path, "9/frame_02/7.png", "9/frame_2/7.png")
    found = list_folder(tmp_path).listing
    assert found.classes == ["1a", "9", "10"]
    assert [path.relative_to(tmp_path).as_posix() for path in found.paths[4:10]] == [
        "9/frame_1.png", "9/frame_02/7.png", "9/frame_2/7.png", "9/frame_9.png", "9/frame_10.png", "9/frame_100.png",
    ]  # fmt: skip


def test_names_that_are_no_text_are_read_and_stay_different(tmp_path):
    names = [b"caf\xe9", b"caf\\xe9", b"th\xe9", "café".encode(), b"a\nb", b"$x$"]
    for number, name in enumerate(names):
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(folder)
        for i in range(2):
            with open(os.path.join(folder, b"\xff%d.png" % i), "wb") as file:
                Image.new("L", (4, 4), number).save(file, "PNG")
    images = load(tmp_path)
    assert sorted(images.classes) == sorted([r"caf\xe9", r"caf\\xe9", r"th\xe9", "café", r"a\nb", "$x$"])
    for label, name in zip(images.labels, images.files, strict=True):
        assert name.startswith(f"{images.classes[label]}/\\xff")
    (*map(str.encode, images.files), str(images.found).encode())  # any file takes them
    assert "\n" not in str(images.found) and printable("a\u202eb") == r"a\u202eb"


def test_a_format_that_a_plugin_brings_is_read(tmp_path, monkeypatch):
    class Toy(ImageFile.ImageFile):
        format = "TOY"

        def _open(self):
            self._mode, self._size, self.tile = "L", (2, 2), [("raw", (0, 0, 2, 2), 3, ("L", 0, 1))]

    for table in ("ID", "OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, table, getattr(Image, table).copy())
    Image.register_open("TOY", Toy, lambda head: head.startswith(b"toy"))
    Image.register_extension("TOY", ".toy")
    for i in range(2):
        (tmp_path / f"{i}.toy").write_bytes(b"toy\x01\x02\x03\x04")
    assert load(tmp_path).images.flatten().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("ending", ["avif", "webp", "tga", "jp2", "qoi", "ico", "jfif"])
def test_pictures_of_every_common_ending_are_read(tmp_path, ending):
    for i in range(2):
        try:
            Image.new("RGB", (16, 16), "red").save(tmp_path / f"{i}.{ending}")
        except (OSError, ValueError, KeyError):
            pytest.skip("not in this Pillow")
    assert load(tmp_path).found.images == 1


@pytest.mark.parametrize("ending", ["pdf", "ps", "eps", "mpg", "h5", "fits", "wmf"])
def test_what_is_no_picture_is_not_read(tmp_path, ending):
    plant(tmp_path, "1.png", f"2.{ending}", f"3.{ending}")
    assert f"2 with other endings (.{ending})" in str(load(tmp_path).found)


@pytest.fixture(params=[2**31, 0], ids=["in memory", "on demand"])
def with_damage(tmp_path, monkeypatch, request):
    """Forty pictures of two classes, four of them cut."""
    monkeypatch.setattr("codegrid.data.folder.IN_MEMORY_BYTES", request.param)
    plant(tmp_path, *(f"{'ab'[i % 2]}/{i}.png" for i in range(40)))
    for name in ("a/6.png", "a/20.png", "a/34.png", "b/13.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    return tmp_path


def test_all_damaged_pictures_are_named_at_once_before_anything_is_learnt(with_damage):
    with pytest.raises(InputError) as caught:
        load(with_damage)
    said = str(caught.value)
    assert re.search(r"a/6.png is not a readable picture \(.*\): fix or remove it, or leave .* `skip_unreadable`", said)
    assert said.endswith("; 3 more cannot be read: a/20.png, a/34.png, b/13.png")


def test_damaged_pictures_can_be_left_out(with_damage):
    images = load(with_damage, skip_unreadable=True)
    everything = [image for batch in load_batches(images, in_order(len(images), 7)) for image in batch.images]
    shades = [int(name.partition("/")[2].removesuffix(".png")) for name in images.files]
    assert len(everything) == len(images) == images.found.images == len(shades) == 32
    assert [int(image.max()) for image in everything] == shades and {6, 13, 20, 34}.isdisjoint(shades)
    assert [shade % 2 for shade in shades] == images.labels.tolist()
    assert "left out: 4 unreadable (a/20.png, a/34.png, a/6.png, …)" in str(images.found)
    assert "(a 15, b 17)" in str(images.found)


def test_damage_that_comes_later_is_told_in_full_too(tmp_path, monkeypatch):
    monkeypatch.setattr("codegrid.data.folder.IN_MEMORY_BYTES", 0)
    images = load(plant(tmp_path, *(f"{i}.png" for i in range(20))))
    for name in ("4.png", "7.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"4.png is not a readable picture .*; 1 more cannot be read: 7.png"):
        images.batch(range(3, 6))


def test_a_folder_of_nothing_but_damage_is_refused_even_so(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"0.png is not a readable picture"):
        load(tmp_path, skip_unreadable=True)


def test_other_data_sets_say_what_they_are_too(bars_file):
    assert str(load_images("npz", bars_file).found) == f"{bars_file}, train: 54 images in 2 classes (0 27, 1 27)"
    unnamed = ImageDataset(torch.zeros(3, 1, 4, 4, dtype=torch.uint8))
    assert str(unnamed.found) == "3 images without labels" and unnamed.files is None


def test_numbers_in_names_count():
    names = ["a2", "a10", "a02", "a", "b1", "10", "9", "1a1", "1a"]
    assert sorted(names, key=natural_key) == ["1a", "1a1", "9", "10", "a", "a02", "a2", "a10", "b1"]
    assert len({natural_key(name) for name in names}) == len(names) and np.unique(names).size == len(names)


def test_both_parts_come_out_of_one_look_and_what_is_changed_between_them_is_seen(tmp_path, monkeypatch):
    plant(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "test/dog/4.png")
    for path in (tmp_path, *tmp_path.glob("**/")):
        os.utime(path, (1e9, 1e9))
    looked_at, scan = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked_at.append(path) or scan(path))
    assert len(load(tmp_path)) == len(load(tmp_path, "test")) == 2
    assert len(looked_at) == len(set(looked_at)) == 7
    plant(tmp_path, "test/dog/5.png")
    assert len(load(tmp_path, "test")) == 3
    plant(tmp_path, "test/dog/6.png")  # perhaps in the same instant
    assert len(load(tmp_path, "test")) == 4
