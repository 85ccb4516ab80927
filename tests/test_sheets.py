"""Sheets of images under headings: where the classes stand, and what becomes of names that are hard to draw."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from untrained import make_pipeline

from codegrid.codes import NO_LABEL
from codegrid.pipelines.drawing.blocks import Block, arrange_by_class, draw_blocks, heading_of, save_by_class
from codegrid.pipelines.drawing.films import make_strip
from codegrid.pipelines.drawing.letters import drawable, fit, load_font
from codegrid.pipelines.generation.completion import Pictures, save_completions
from codegrid.pipelines.generation.kept_part import Part, top_rows
from codegrid.pipelines.generation.request import complete_codes

ODD = [
    "$5_note_$10", "$_{x$", "犬の写真", "two\nlines\tor more", "n" * 300, "n01440764_tench, Tinca tinca", "",
    " ", "\0\a", "\ud800", "caf\udce9", "😀👨‍👩‍👧🏳️‍🌈", "عربي עברית", "a\u202etxt.exe", "W" * 20,
]  # fmt: skip


def colours(count, size=(4, 4)):
    """Plain images (count, 3, H, W), each of a colour that no text has."""
    images = torch.full((count, 3, *size), 0.5)
    images[:, 0], images[:, 1] = -1, torch.linspace(-1, 1, count)[:, None, None]
    return images


def places(picture, images):
    """The box of each image's pixels in a picture, (left, top, right, bottom), where they fill it."""
    found = []
    pixels = np.asarray(picture)
    for image in images:
        colour = ((image[:, 0, 0] + 1) * 127.5).round().numpy()
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        found.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        assert (found[-1][2] - found[-1][0]) * (found[-1][3] - found[-1][1]) == len(rows)
    return found


@pytest.mark.parametrize(
    "classes,count,size,blocks,columns",
    [
        (0, 100, (8, 8), [1], 10),
        (1, 100, (8, 8), [1], 10),
        (2, 100, (8, 8), [2], 5),
        (10, 100, (8, 8), [10], 1),
        (12, 100, (8, 8), [6, 6], 2),
        (100, 100, (8, 8), [10] * 10, 1),
        (2, 2, (8, 8), [2], 1),
        (10, 100, (64, 8), [10], 3),
        (10, 100, (8, 64), [4, 4, 2], 1),
    ],
)
def test_each_class_is_a_block_and_few_stand_beside_each_other(classes, count, size, blocks, columns):
    labels = [number % classes if classes else None for number in range(count)]
    bands = arrange_by_class(colours(count, size), labels, [])
    assert [len(band) for band in bands] == blocks and {block.columns for band in bands for block in band} == {columns}
    headings = [block.heading for band in bands for block in band]
    assert headings == ([str(number) for number in range(classes)] or [""])


@pytest.mark.parametrize("size", [(8, 8), (256, 256), (5, 40), (40, 5)])
def test_every_image_is_drawn_whole_below_the_others_of_its_class(size, tmp_path):
    images, labels = colours(6, size), np.array([2, 0, 1, 2, 0, NO_LABEL])
    save_by_class(tmp_path / "sheet.png", images, 6, labels, ODD)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert max(sheet.size) < 1800
        boxes = places(sheet, images)
    sizes = {(bottom - top, right - left) for left, top, right, bottom in boxes}
    assert len(sizes) == 1 and sizes.pop()[0] % size[0] == 0
    assert boxes[0][0] <= boxes[3][0] < boxes[1][0] <= boxes[4][0]  # in the order in which the classes come


def test_a_heading_stands_above_its_class_and_nowhere_else():
    images = colours(8)
    one, other = (draw_blocks(arrange_by_class(images, [0, 1] * 4, ["cat", name])) for name in ("dog", "$pig$"))
    rows, columns = np.nonzero((np.asarray(one) != np.asarray(other)).any(axis=2))
    boxes = places(one, images)
    left, right = min(box[0] for box in boxes[1::2]), max(box[2] for box in boxes[1::2])
    assert one.size == other.size and len(rows) > 50
    assert left <= columns.min() and columns.max() < right and rows.max() < boxes[1][1]
    ink = columns.min() + columns.max()
    assert abs(ink - left - right) < 30  # in the middle


@pytest.mark.parametrize("size", [(4, 4), (2, 80)])
def test_the_name_of_a_row_stands_on_its_left(size):
    images = colours(6, size)
    blocks = [Block("given", images[:2], 1), Block("completions", images[2:], 2)]
    one, other = (draw_blocks([blocks], ["a folder/and a file.png", name]) for name in ("b.png", "c.png"))
    rows, columns = np.nonzero((np.asarray(one) != np.asarray(other)).any(axis=2))
    above, (left, top, _, bottom) = places(one, images)[:2]
    assert len(rows) and columns.max() < left and abs(rows.min() + rows.max() - top - bottom) < 20
    assert top - above[3] >= 0 and top - above[1] > 40  # room for two lines


def test_a_sheet_says_what_it_leaves_out(tmp_path):
    images, labels = colours(4), np.arange(6)
    for name, count in (("all", 4), ("some", 6)):
        save_by_class(tmp_path / name, images, count, labels[:count], [])
    heights = [Image.open(tmp_path / name).height for name in ("all", "some")]
    assert 15 < heights[1] - heights[0] < 60


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_any_name_is_drawn_in_two_lines_that_fit(name, recwarn):
    lines = fit(heading_of(0, [name]), 16, 80)
    assert 1 <= len(lines) <= 2 and any(lines) and not recwarn
    for line in lines:
        assert load_font(16).getlength(line) <= 80 and load_font(16).getmask(line).size[0] <= 81


def test_names_keep_both_ends_and_break_where_words_do():
    assert fit("Food-&-Drink", 16, 80) == ["Food-&-", "Drink"]
    first, second = fit("n01440764_tench_of_the_sea", 16, 80)
    assert first.startswith("n014") and second.startswith("…") and second.endswith("sea")


@pytest.mark.parametrize(
    "name,shown",
    [
        ("$5", "$5"), ("犬", "3: □"), ("caf\udce9", "3: caf□"), ("two\n lines", "two lines"), ("", "3"), ("мир", "мир"),
        ("a\u202eb\u200dc", "abc"), ("\0", "3: □"),
    ],
)  # fmt: skip
def test_a_class_whose_letters_the_font_lacks_is_told_by_its_number(name, shown):
    assert drawable(name, 3) == shown


def test_classes_without_names_are_called_by_number():
    assert [heading_of(label, []) for label in (None, NO_LABEL, 7)] == ["", "no class", "7"]


@pytest.mark.parametrize("labels,sides", [([1], {"right"}), ([0, 1], {"left"}), (["none"], set())])
def test_completions_stand_under_headings_with_the_class_where_one_was_asked_for(labels, sides, tmp_path):
    pipeline = make_pipeline()
    images = torch.zeros(2, 1, 12, 20)
    pictures = Pictures(pipeline.encode(images), images, ["a.png", "a.png"], "", Part(top_rows(pipeline.layout, 1)))
    request = complete_codes(pipeline.priors, pictures.codes, pictures.part.masks, 2, labels, seed=0)
    drawn = []
    for classes in (["cat", "dog"], ["dog", "cat"]):
        save_completions(tmp_path / "c.png", pipeline.tokenizer, request, pictures, images.repeat(2, 1, 1, 1), classes)
        drawn.append(np.asarray(Image.open(tmp_path / "c.png")).astype(int))
    changed = np.nonzero((drawn[0] != drawn[1]).any(axis=(0, 2)))[0]
    middle = drawn[0].shape[1] / 2
    assert {"left" if column < middle else "right" for column in changed.tolist()} == sides


def test_each_frame_of_a_strip_stands_beside_its_name_and_below_its_distance():
    frames = colours(8)
    rows = {"real": frames[:4], "drawn": frames[4:]}
    strip = make_strip(rows, given=2)
    boxes = places(strip, frames)
    assert [box[0] for box in boxes[:4]] == [box[0] for box in boxes[4:]] == sorted({box[0] for box in boxes})
    assert {box[1] for box in boxes[:4]} < {box[1] for box in boxes} and boxes[0][3] < boxes[4][1]

    def changed(other):
        """Where another strip differs: left, top, right, bottom."""
        assert other.size == strip.size
        return ImageChops.difference(strip, other).getbbox()

    left, top, right, bottom = changed(make_strip({"real": frames[:4], "drown": frames[4:]}, given=2))
    assert right < boxes[4][0] and boxes[4][1] <= top < bottom <= boxes[4][3]
    left, top, right, bottom = changed(make_strip(rows, given=3))  # the third frame is given, the fourth is +1
    assert boxes[2][0] <= left < right <= boxes[3][2] and bottom < boxes[0][1]
    pixels = np.asarray(make_strip(rows, 2, gamma=0.5))
    assert pixels[boxes[1][1], boxes[1][0]].tolist() == [0, round(255 * (1 / 7) ** 0.5), round(255 * 0.75**0.5)]
