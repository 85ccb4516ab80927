"""Data sets: range, splits, sizes, labels, and files that cannot be used.

Shapes: n images, c channels, H W image.
"""

import numpy as np
import pytest
import torch
from conftest import draw_bars
from PIL import Image

from codegrid.codes import Signal
from codegrid.data.folder import FolderImages
from codegrid.data.images import ImageDataset, affordable, evenly_spaced, to_float, to_uint8
from codegrid.data.sources import load_images
from codegrid.data.splits import split_indices, warn_of_few
from codegrid.errors import InputError


def write_folder_of_bars(root, sizes=((12, 20),), classes=("lying", "upright"), count=20):
    """count pictures, in class folders, of the given sizes in turn."""
    for i in range(count):
        images, labels = draw_bars(2, *sizes[i % len(sizes)], channels=3, seed=i)
        folder = root / classes[labels[i % 2]] if classes else root
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i % 2]).save(folder / f"{i:03d}.png")
    return root


def test_every_uint8_value_survives_the_way_to_float_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(values)), values)
    assert to_float(values).min() == -1 and to_float(values).max() == 1


def test_the_variance_is_that_of_the_floats(bars_file):
    images = load_images("npz", bars_file, "train")
    assert images.variance() == pytest.approx(to_float(images.images).double().var(correction=0).item(), rel=1e-6)


def counts_by_class(labels, split):
    return np.bincount(np.asarray(labels)[split_indices(labels, len(labels), split)], minlength=max(labels) + 1)


def test_sorted_data_are_split_class_by_class():
    labels = np.repeat([0, 1, 2], [50, 30, 5])
    train, test = (split_indices(labels, 85, split) for split in ("train", "test"))
    assert sorted([*train, *test]) == list(range(85)) == split_indices(labels, 85, "all").tolist()
    assert counts_by_class(labels, "test").tolist() == [5, 3, 0]


@pytest.mark.parametrize(
    "length,held_out",
    [(1, 0), (2, 1), (9, 1), (60, 6), (400, 40), (450, 50), (500, 100), (999, 100), (1500, 150), (5000, 500)],
)
def test_a_tenth_is_held_out_and_more_of_few_as_long_as_enough_is_left_to_learn(length, held_out):
    for labels in (None, np.arange(length) % 3, np.arange(length) // 7):
        assert len(split_indices(labels, length, "test")) == held_out


def test_small_classes_give_their_share_together_and_none_gives_all():
    people = np.repeat(np.arange(300), 9)
    assert counts_by_class(people, "test").sum() == 270 and counts_by_class(people, "test").max() == 1
    uneven = np.repeat([0, 1, 2, 3], [300, 295, 4, 1])
    assert counts_by_class(uneven, "test").tolist() == [50, 49, 1, 0]
    alone = np.arange(1000)
    assert counts_by_class(alone, "test").sum() == 100, "where each class has one item, labels cannot be looked at"


def test_what_is_held_out_of_a_class_does_not_depend_on_where_the_others_lie():
    sizes = {0: 50, 1: 30, 2: 20}
    there = [np.concatenate([np.full(sizes[label], label) for label in order]) for order in ((0, 1, 2), (2, 0, 1))]
    mixed = np.random.default_rng(0).permutation(there[0])
    held_out = []
    for labels in (*there, mixed):
        chosen = split_indices(labels, 100, "test")
        held_out.append(
            [np.searchsorted(np.flatnonzero(labels == c), chosen[labels[chosen] == c]).tolist() for c in sizes]
        )
    assert held_out[0] == held_out[1] == held_out[2] == [[9, 19, 29, 39, 49], [9, 19, 29], [9, 19]]


def test_figures_that_rest_on_few_are_called_rough():
    assert warn_of_few(99, "images") == ["only 99 held-out images: figures that are measured on them are rough"]
    assert not warn_of_few(100, "images")


def test_evenly_spaced_items_meet_every_class_of_sorted_data():
    assert evenly_spaced(100, 4) == [0, 25, 50, 75]
    assert evenly_spaced(3, 10) == [0, 1, 2]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_npz_of_images_is_read_as_it_was_saved(tmp_path, channels):
    pixels, labels = draw_bars(20, channels=channels)
    np.savez(tmp_path / "a.npz", pixels, labels)
    parts = [load_images("npz", tmp_path / "a.npz", split) for split in ("train", "test")]
    assert sorted(map(len, parts)) == [2, 18]
    assert parts[0].images.shape[1:] == (channels, 12, 20)
    assert torch.equal(parts[0].images[0], torch.from_numpy(pixels[0]).permute(2, 0, 1))
    assert parts[0].classes == ["0", "1"]


def test_images_without_a_channel_axis_are_grey(tmp_path):
    np.savez(tmp_path / "a.npz", draw_bars(20)[0][..., 0])
    images = load_images("npz", tmp_path / "a.npz", "train")
    assert images.in_channels == 1 and images.labels is None


@pytest.mark.parametrize("size,expected", [((8,), (8, 8)), ((6, 30), (6, 30)), ((), (12, 20))])
def test_images_are_resized_and_cropped_to_the_size_asked_for(bars_file, size, expected):
    assert load_images("npz", bars_file, "train", size).image_size == expected


def test_channels_are_converted_where_a_tokenizer_needs_others(bars_file):
    assert load_images("npz", bars_file, "train", in_channels=3).in_channels == 3


@pytest.mark.parametrize(
    "wrong,reason",
    [({"split": "val"}, "`split` 'val': choose one of train"), ({"image_size": 8}, "`image_size` 8: it must be"),
     ({"image_size": ("8",)}, "`image_size` '8'"), ({"in_channels": 2}, "`in_channels` 2: choose one of")],
    ids=str,
)  # fmt: skip
def test_a_part_a_size_or_channels_that_cannot_be_are_refused_by_name(bars_file, wrong, reason):
    with pytest.raises(InputError, match=reason):
        load_images(bars_file, **wrong)


def test_a_folder_of_mixed_sizes_is_read_with_its_classes(tmp_path):
    root = write_folder_of_bars(tmp_path, sizes=((12, 20), (40, 31), (9, 64)))
    images = load_images("imagefolder", root, "train", (8, 10))
    assert images.images.shape == (18, 3, 8, 10)
    assert images.classes == ["lying", "upright"]
    assert torch.bincount(images.labels).tolist() == [9, 9]


def test_a_folder_without_class_folders_has_no_labels(tmp_path):
    images = load_images("imagefolder", write_folder_of_bars(tmp_path, classes=()), "train")
    assert images.labels is None and images.classes == [] and len(images) == 18


def test_a_rotated_photo_is_read_upright(tmp_path):
    pixels = draw_bars(1, 12, 20, channels=3)[0][0]
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    for i in range(3):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png", exif=exif)
    images = load_images("imagefolder", tmp_path, "train")
    assert images.image_size == (20, 12)
    upright = torch.from_numpy(np.rot90(pixels, k=-1).copy()).permute(2, 0, 1)
    assert torch.equal(images.images[0], upright)


def test_sixteen_bit_pictures_keep_their_shades(tmp_path):
    ramp = np.linspace(0, 65535, 240).astype(np.uint16).reshape(12, 20)
    for i in range(2):
        Image.fromarray(ramp).save(tmp_path / f"{i}.png")
    images = load_images("imagefolder", tmp_path, "train")
    assert images.in_channels == 1
    assert torch.equal(images.images[0, 0], torch.from_numpy((ramp >> 8).astype(np.uint8)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_of_a_picture_are_white(tmp_path, mode):
    line = np.zeros((12, 20, 4), dtype=np.uint8)
    line[3:6, :, 3] = 255  # a black line on nothing
    for i in range(2):
        Image.fromarray(line).convert(mode).save(tmp_path / f"{i}.png")
    images = load_images("imagefolder", tmp_path, "train").images
    assert (images[0, :, 3:6] == 0).all() and (images[0, :, 6:] == 255).all()


def test_folders_named_train_and_test_are_the_parts(tmp_path):
    write_folder_of_bars(tmp_path / "train", count=6)
    write_folder_of_bars(tmp_path / "test", count=4)
    train, test, both = (load_images("imagefolder", tmp_path, split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(both)) == (6, 4, 10)
    assert torch.equal(both.images, torch.cat([train.images, test.images]))
    assert torch.equal(both.labels, torch.cat([train.labels, test.labels]))


def test_pictures_read_on_demand_equal_those_kept_in_memory(tmp_path, monkeypatch):
    root = write_folder_of_bars(tmp_path)
    kept = load_images("imagefolder", root, "train", (8, 8))
    monkeypatch.setattr("codegrid.data.folder.IN_MEMORY_BYTES", 0)
    on_demand = load_images("imagefolder", root, "train", (8, 8))
    assert isinstance(on_demand, FolderImages)
    chosen = [5, 0, 11]
    ours, theirs = on_demand.batch(chosen), kept.batch(chosen)
    assert torch.equal(ours.images, theirs.images) and torch.equal(ours.labels, theirs.labels)
    assert on_demand.variance() == pytest.approx(kept.variance())
    assert torch.equal(on_demand[-1].images, kept[-1].images) and on_demand[3].labels == kept[3].labels
    for images in (kept, on_demand):
        with pytest.raises(TypeError, match="whole numbers"):
            images.batch(images.labels == 0)
    assert kept.signal == on_demand.signal == Signal("image", 3, (8, 8))


def test_folders_too_large_for_memory_are_told_apart_by_the_content_of_their_files(tmp_path, monkeypatch):
    prints = []
    for number, grey in enumerate((7, 7, 8)):
        root = tmp_path / str(number)
        root.mkdir()
        for name in ("a.bmp", "b.bmp", "c.bmp"):  # of one size, whatever they show
            Image.new("L", (4, 4), grey if name == "b.bmp" else 0).save(root / name)
        prints.append(FolderImages(root, sorted(root.iterdir()), None, [], None, None).fingerprint())
    assert prints[0] == prints[1] != prints[2]
    monkeypatch.setattr("codegrid.data.images.FINGERPRINTED", 50)
    assert affordable([10] * 100) == [0, 20, 40, 60, 80] and affordable([10, 1000]) == [0] and affordable([]) == []


def test_the_fingerprint_follows_pixels_labels_and_names():
    pixels, labels = (torch.from_numpy(array) for array in draw_bars(4))
    prints = [
        ImageDataset(images, numbers, names).fingerprint()
        for images, numbers, names in (
            (pixels, labels, "ab"), (pixels.clone(), labels, "ab"), (pixels.flip(0), labels, "ab"), (pixels, None, ""),
            (pixels, 1 - labels, "ab"), (pixels, labels, "ba"),
        )
    ]  # fmt: skip
    assert prints[0] == prints[1] and len(set(prints)) == 5


def cut_a_picture(root):
    path = sorted((root / "upright").iterdir())[0]
    path.write_bytes(path.read_bytes()[:100])
    return f"{path.name} is not a readable picture"


def add_another_size(root):
    Image.new("RGB", (21, 12)).save(root / "lying" / "000.png")
    return "`image_size`"


def empty_it(root):
    for path in root.rglob("*.png"):
        path.unlink()
    return "no pictures"


@pytest.mark.parametrize("damage", [cut_a_picture, add_another_size, empty_it])
def test_a_folder_that_cannot_be_used_is_named_with_the_reason(tmp_path, damage):
    root = write_folder_of_bars(tmp_path)
    reason = damage(root)
    with pytest.raises(InputError, match=reason):
        load_images("imagefolder", root, "train")
