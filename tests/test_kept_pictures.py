"""Pictures that were decoded once are read from the folder for caches, as long as their files stay as they are."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid.data import decoded, folder
from codegrid.data.sources import load_images

LONG_AGO = 1e9


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder of six pictures that settled long ago; all are worth keeping."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(decoded, "MANY", 2)
    monkeypatch.setattr(decoded, "SETTLED", 0)
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(6):
        write_picture(root / f"{number}.png", number)
    return root


def write_picture(path, shade, time=LONG_AGO):
    Image.new("LA", (4, 4), (shade, 128 + shade)).save(path, "PNG")
    os.utime(path, (time, time))


def load(root, split="all", **options):
    return load_images("imagefolder", root, split, **options)


def counting_decoder(monkeypatch):
    """Count what is decoded from here on, but for the few pictures that tell the size."""
    seen, read = [], folder.read_picture
    monkeypatch.setattr(folder, "read_picture", lambda path, *rest: seen.append(path) or read(path, *rest))
    return seen


def test_pictures_that_were_decoded_once_are_not_decoded_again(pictures, monkeypatch):
    first, seen = load(pictures), counting_decoder(monkeypatch)
    again = load(pictures)
    assert not seen
    assert torch.equal(again.images, first.images) and again.files == first.files
    assert again.fingerprint() == first.fingerprint()
    assert "6 with transparent parts" in str(again.found) and str(again.found) == str(first.found)


def test_pictures_may_be_older_than_the_clock(pictures, monkeypatch):
    os.utime(pictures / "0.png", (-3600, -3600))
    first, seen = load(pictures), counting_decoder(monkeypatch)
    assert torch.equal(load(pictures).images, first.images) and not seen


def change_content(root):
    write_picture(root / "3.png", 77, LONG_AGO + 1)


def swap(root):
    (
        os.rename(root / "3.png", root / "x"),
        os.rename(root / "4.png", root / "3.png"),
        os.rename(root / "x", root / "4.png"),
    )


CHANGES = {
    "another content": change_content,
    "one more": lambda root: write_picture(root / "9.png", 9),
    "one less": lambda root: (root / "3.png").unlink(),
    "two swapped": swap,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_pictures_whose_files_have_changed_are_decoded_again(pictures, change):
    load(pictures)
    change(pictures)
    shades = [Image.open(path).convert("LA").getpixel((0, 0)) for path in sorted(pictures.iterdir())]
    expected = [np.uint8(Image.alpha_composite(*layers(shade)).getpixel((0, 0))[0]) for shade in shades]
    assert load(pictures).images[:, 0, 0, 0].tolist() == [int(each) for each in expected]


def layers(shade):
    grey, alpha = shade
    return Image.new("RGBA", (1, 1), "white"), Image.new("RGBA", (1, 1), (grey, grey, grey, alpha))


@pytest.mark.parametrize("options", [{"image_size": (2,)}, {"in_channels": 1}, {"split": "train"}], ids=str)
def test_pictures_in_another_form_are_decoded_for_themselves(pictures, monkeypatch, options):
    load(pictures)
    seen = counting_decoder(monkeypatch)
    first = load(pictures, **options)
    assert len(seen) == len(first)
    assert torch.equal(load(pictures, **options).images, first.images) and len(seen) == len(first)


def test_files_that_have_just_changed_are_not_trusted_to_show_the_next_change(pictures, monkeypatch):
    monkeypatch.setattr(decoded, "SETTLED", 10**15)
    load(pictures)
    seen = counting_decoder(monkeypatch)
    load(pictures)
    assert len(seen) == 6


def cut_short(kept):
    (kept / decoded.PIXELS).write_bytes(b"1")


def alter(kept):
    content = bytearray((kept / decoded.PIXELS).read_bytes())
    content[5] ^= 1
    (kept / decoded.PIXELS).write_bytes(content)


DAMAGES = {
    "cut short": cut_short,
    "altered": alter,
    "no index": lambda kept: (kept / decoded.INDEX).unlink(),
    "an index of something else": lambda kept: (kept / decoded.INDEX).write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_ones_are_made_again(pictures, monkeypatch, damage):
    first = load(pictures)
    (kept,) = decoded.cache_folder().iterdir()
    damage(kept)
    seen = counting_decoder(monkeypatch)
    assert torch.equal(load(pictures).images, first.images) and len(seen) == 6
    load(pictures)
    assert len(seen) == 6


def test_folders_with_damaged_pictures_are_read_each_time(pictures):
    (pictures / "2.png").write_bytes(b"no picture")
    assert "1 unreadable" in str(load(pictures, skip_unreadable=True).found)
    assert not list(decoded.cache_folder().glob("*"))


def test_a_folder_for_caches_that_cannot_be_written_does_no_harm(pictures, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load(pictures)) == 6


def test_without_a_home_folder_nothing_is_kept(pictures, monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", fail)
    assert len(load(pictures)) == 6


def test_what_was_used_longest_ago_makes_room(pictures, monkeypatch):
    size = load(pictures).images.numel()
    (oldest,) = decoded.cache_folder().iterdir()
    os.utime(oldest / decoded.INDEX, (LONG_AGO, LONG_AGO))
    monkeypatch.setattr(decoded, "ROOM", 2 * size)
    load(pictures, image_size=(4, 4)), load(pictures, in_channels=1)
    assert len(list(decoded.cache_folder().iterdir())) == 2 and not oldest.exists()
    monkeypatch.setattr(decoded, "ROOM", size - 1)
    load(pictures, image_size=(4, 4), in_channels=3)
    assert len(list(decoded.cache_folder().iterdir())) == 2
