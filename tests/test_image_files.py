"""Images in files: whole or made again, under names that are safe whatever they come from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid import InputError
from codegrid.data.image_files import make_files

SHAPE = (12, 3, 4, 5)
IMAGES = torch.arange(12 * 60, dtype=torch.int64).remainder(251).to(torch.uint8).view(SHAPE)


def files_in(folder, names=lambda rows: [""] * len(rows), shape=SHAPE):
    return make_files("png", folder, "images", shape, None, names, shard_size=100)


@pytest.fixture
def whole(tmp_path):
    files = files_in(tmp_path)
    files.write(range(12), IMAGES.split(5))
    return files


def test_pictures_are_read_as_they_were_written(whole, tmp_path):
    assert whole.missing() == [] and str(whole) == "images/"
    for path, image in zip(sorted((tmp_path / "images").iterdir()), IMAGES, strict=True):
        assert np.array_equal(np.array(Image.open(path)), image.permute(1, 2, 0))
    assert torch.equal(((whole.read_first(7) + 1) * 127.5).round().byte(), IMAGES[:7])


def test_pictures_that_are_missing_or_damaged_are_told_range_by_range(whole, tmp_path):
    assert files_in(tmp_path / "new").missing() == [range(12)]
    for number in (0, 4, 5, 11):
        (tmp_path / "images" / f"{number:05d}.png").unlink()
    (tmp_path / "images" / "00007.png").write_bytes(b"")
    Image.new("RGB", (5, 5)).save(tmp_path / "images" / "00009.png")
    Image.new("L", (5, 4)).save(tmp_path / "images" / "00010.png")
    (tmp_path / "images" / "00012.png").write_bytes(b"of a user")
    assert whole.missing() == [range(0, 1), range(4, 6), range(7, 8), range(9, 12)]
    for numbers in whole.missing():
        whole.write(numbers, IMAGES[numbers.start : numbers.stop].split(1))
    assert whole.missing() == [] and (tmp_path / "images" / "00012.png").exists()


def test_a_picture_with_any_byte_changed_is_made_again(tmp_path):
    one, path = files_in(tmp_path, shape=(1, *SHAPE[1:])), tmp_path / "images" / "00000.png"
    one.write(range(1), [IMAGES[:1]])
    content = path.read_bytes()
    for at, byte in enumerate(content):
        path.write_bytes(content[:at] + bytes([byte ^ 1 << at % 8]) + content[at + 1 :])
        if not one.missing():  # then the byte means nothing: it is of the mark at the end
            assert np.array_equal(np.array(Image.open(path)), IMAGES[0].permute(1, 2, 0)), f"byte {at}"


@pytest.mark.parametrize(
    "name,kept",
    [("cat", "-cat"), ("../../etc/x", "-etc_x"), ("a\\b:c\x00\n", "-a_b_c"), ("..", ""), ("", ""), ("猫 1", "-猫_1"),
     ("CON.png", "-CON_png"), ("x" * 999, "-" + 48 * "x"), ("\udcff", ""), ("😀", "")],
)  # fmt: skip
def test_names_from_outside_lead_nowhere(name, kept, tmp_path):
    files_in(tmp_path, lambda rows: [name], (1, *SHAPE[1:])).write(range(1), [IMAGES[:1]])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "images" / f"00000{kept}.png"]


def test_images_that_no_picture_can_show_are_refused():
    with pytest.raises(InputError, match="`format` png: images have 2 channels"):
        files_in(Path(), shape=(1, 2, 4, 5))
