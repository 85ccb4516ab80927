"""Augmentation: what may change in a training image, and what must not."""

import pytest
import torch

from codegrid.data.augmentation import Augmentation
from codegrid.data.images import to_float, to_uint8
from codegrid.noise import Noise


def draw_images(count=64, channels=3, height=6, width=9):
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8)


def augmented(images, **options):
    return Augmentation(**options)(images, Noise(0, count=len(images)))


@pytest.mark.parametrize("options", [{"shift": 2}, {"crop": 0.7}])
def test_augmentation_is_as_exact_within_a_step_in_bfloat16(options):
    images = draw_images(height=70, width=90)
    expected = augmented(images, **options)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augmented(images, **options), expected)


def test_without_augmentation_images_are_only_brought_into_their_range():
    images = draw_images()
    assert torch.equal(augmented(images), to_float(images))


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_others():
    images = draw_images(400)
    after = to_uint8(augmented(images, flip=True))
    same, mirrored = ((after == other).flatten(1).all(1) for other in (images, images.flip(3)))
    assert (same ^ mirrored).all() and 150 < mirrored.sum() < 250


def test_shift_moves_whole_pixels_and_repeats_the_edges():
    images = draw_images(300)
    after = to_uint8(augmented(images, shift=2))
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="replicate").to(torch.uint8)
    windows = [padded[:, :, y : y + 6, x : x + 9] for y in range(5) for x in range(5)]
    matches = torch.stack([(after == window).flatten(1).all(1) for window in windows])
    assert matches.any(0).all() and matches.any(1).all()  # each image is one of the windows, each window occurs


def test_crop_enlarges_a_window_of_the_image():
    # brightness = column: a window of share s has the slope s, and lies inside
    images = torch.arange(0, 250, 10, dtype=torch.uint8).expand(200, 1, 25, 25)
    after = (augmented(images, crop=0.5) + 1) * 127.5
    slopes = after[:, 0, 12, 13] - after[:, 0, 12, 12]
    assert slopes.min() > 4.9 and slopes.max() < 10.1 and slopes.max() - slopes.min() > 4
    assert after.min() >= 0 and after.max() <= 240.01 and after.shape == images.shape


@pytest.mark.parametrize(
    "options", [{"flip": True}, {"shift": 3}, {"crop": 0.7}, {"flip": True, "shift": 1, "crop": 0.9}]
)
def test_what_becomes_of_an_image_follows_from_its_number_in_whatever_batch(options):
    images = draw_images()
    alone = [Augmentation(**options)(images[i : i + 1], Noise(0, first_index=i)) for i in range(len(images))]
    assert torch.equal(augmented(images, **options), torch.cat(alone))
    assert not torch.equal(augmented(images, **options), to_float(images))
