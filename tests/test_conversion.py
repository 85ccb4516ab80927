"""Pictures and arrays of any form → images: the same pixels give the same images, and what is no image is refused."""

import io
import warnings

import numpy as np
import pytest
import torch
from conftest import draw_bars
from PIL import Image

from codegrid import as_images
from codegrid.data.folder import FolderImages
from codegrid.data.images import to_float
from codegrid.data.sources import load_images
from codegrid.errors import InputError

COLOUR = draw_bars(2, 12, 20, channels=3)[0]  # (2, 12, 20, 3) uint8
EXPECTED = to_float(torch.from_numpy(COLOUR).permute(0, 3, 1, 2))
GREY = COLOUR[..., 0]

FORMS = {
    "pictures": [Image.fromarray(pixels) for pixels in COLOUR],
    "a picture and an array": [Image.fromarray(COLOUR[0]), COLOUR[1]],
    "bytes": COLOUR,
    "whole numbers": COLOUR.astype(np.int32),
    "floats": COLOUR / 255,
    "mirrored twice": COLOUR[:, ::-1].copy()[:, ::-1],
    "a list of arrays": list(COLOUR.astype(np.float32) / 255),
    "a tensor of bytes": torch.from_numpy(COLOUR).permute(0, 3, 1, 2),
    "tensors of whole numbers": list(torch.from_numpy(COLOUR).permute(0, 3, 1, 2).int()),
    "a tensor of floats": EXPECTED.double(),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_pixels_give_the_same_images_in_every_form(form):
    images = as_images(FORMS[form])
    assert images.dtype == torch.float32 and torch.allclose(images, EXPECTED, atol=1e-6)


GREY_FORMS = {
    "an array": GREY,
    "an array with channels": GREY[..., None],
    "a tensor": torch.from_numpy(GREY)[:, None],
    "tensors": list(torch.from_numpy(GREY)),
    "pictures": [Image.fromarray(pixels) for pixels in GREY],
}


@pytest.mark.parametrize("form", GREY_FORMS)
def test_grey_images_need_no_axis_of_channels(form):
    images = as_images(GREY_FORMS[form])
    assert torch.equal(images, to_float(torch.from_numpy(GREY)[:, None]))
    assert torch.equal(as_images(GREY_FORMS[form], channels=3), images.expand(-1, 3, -1, -1))


def test_images_stay_as_they_are():
    assert torch.equal(as_images(as_images(EXPECTED * 1.5)), EXPECTED * 1.5)


def test_one_colour_image_makes_all_colour():
    assert torch.equal(as_images([GREY[0], COLOUR[1]])[1], EXPECTED[1])


@pytest.mark.parametrize("size,channels", [((8, 8), 3), ((7, 16), 1)])
def test_a_picture_becomes_what_its_file_becomes_in_a_folder(size, channels, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    alpha = np.concatenate([COLOUR[0], COLOUR[1, ..., :1]], axis=-1)
    Image.fromarray(alpha).save(tmp_path / "a.png", exif=exif)
    folder = FolderImages(tmp_path, [tmp_path / "a.png"], None, [], size, channels)
    with Image.open(tmp_path / "a.png") as picture:
        assert torch.equal(as_images(picture, size, channels), to_float(folder.batch([0]).images))


def test_an_array_becomes_what_it_becomes_in_an_npz_data_set(tmp_path):
    np.savez(tmp_path / "a.npz", COLOUR[:1].repeat(20, axis=0))
    images = load_images("npz", tmp_path / "a.npz", "train", (8,), 1).images
    assert torch.equal(as_images(COLOUR[0], (8, 8), 1), to_float(images[:1]))


@pytest.mark.parametrize(
    "images,words",
    [
        ("cat.jpg", "PIL.Image.open"),
        ([], "is empty"),
        (np.zeros((2, 3, 8, 8)), "of shape"),
        (np.zeros((8, 8, 4), np.uint8), "of shape"),
        (np.zeros((0, 8, 8), np.uint8), "of shape"),
        (torch.zeros(8, 8, 3), "of shape"),
        (np.full((8, 8), "a"), "must hold numbers"),
        (COLOUR.astype(float), "from 0 to 1"),
        (COLOUR / 127.5 - 1, "a tensor for"),
        (np.full((8, 8), np.nan), "nan to nan"),
        (COLOUR.astype(np.uint16) + 300, "from 0 to 255"),
        (COLOUR > 0, "bool"),
        (torch.from_numpy(COLOUR).permute(0, 3, 1, 2).float(), r"must be in \[-1, 1\]"),
        (torch.full((1, 8, 8), torch.nan), "nan to nan"),
        ([COLOUR[0], COLOUR[1, :8]], "8×20, 12×20"),
        (np.array(0.3), "of shape"),
        (Image.open(io.BytesIO(b"P6 8 8 255 cut")), "a picture cannot be read"),
    ],
)
def test_something_that_is_not_images_is_refused(images, words):
    with pytest.raises(InputError, match=words):
        as_images(images)


@pytest.mark.parametrize(
    "settings", [{"size": (8,)}, {"size": (0, 8)}, {"size": (8, 8.0)}, {"size": 8}, {"channels": 4}], ids=str
)
def test_a_size_or_channels_that_cannot_be_are_refused(settings):
    with pytest.raises(InputError, match=r"`size|`channels"):
        as_images(COLOUR, **settings)


def test_a_tensor_that_may_be_of_0_to_1_is_warned_of():
    with pytest.warns(UserWarning, match=r"2 \* images - 1"):
        as_images((EXPECTED + 1) / 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_images(torch.ones(1, 1, 8, 8))  # white
