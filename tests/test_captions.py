"""Captions: read beside pictures, from columns and packages, kept with codes, learnt by priors and asked for."""

import pytest
from conftest import draw_bars
from PIL import Image

from codegrid import load_images
from codegrid.data.captions import read_captions
from codegrid.errors import InputError

COUNT = 40
OF_BARS = (("an upright bar", "a bar from top to bottom"), ("a lying bar",))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of bars in two class folders, and a table of their captions beside it."""
    root = tmp_path_factory.mktemp("bars")
    images, labels = draw_bars(COUNT)
    rows = ["file_name,text"]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = f"{('upright', 'lying')[label]}/{number}.png"
        (root / "pictures" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(root / "pictures" / file)
        rows += [f'{file},"{text}"' for text in OF_BARS[label]]
    (root / "captions.csv").write_text("\n".join(rows))
    return root


@pytest.mark.parametrize(("name", "content"), [
    ("a.csv", 'file_name,text\na.png,"one, two"\na.png,three\nb.png, \n'),
    ("a.csv", '\ufeffCaption;Image\r\n"one, two";./a.png\r\nthree;a.png\r\n'),
    ("a.tsv", "id\tpath\tprompt\n1\ta.png\tone,  two\n2\ta.png\tthree\n\n"),
    ("a.jsonl", '{"file_name": "a.png", "text": ["one, two", "three", "three"]}\n\n'),
    ("a.jsonl", '{"image": "a.png", "caption": "one, two"}\n{"image": "a.png", "caption": "three"}'),
])  # fmt: skip
def test_a_table_gives_each_file_its_captions(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert read_captions(tmp_path / name) == {"a.png": ("one, two", "three")}


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.txt", b"", "`captions` .*a.txt': give a table that is here, a file .csv .tsv .jsonl"),
    ("a.csv", b"file_name,title\na,b", "has the columns file_name, title, but none of text, caption"),
    ("a.csv", b"file_name,text\na.png\n", "row 2: 1 columns, but there are 2"),
    ("a.csv", b"file_name,text\na.png,\n", "holds no captions"),
    ("a.csv", b"", "has the columns , but none of file_name"),
    ("a.csv", b"file_name,text\na.png,\xff", "is not a table of captions in UTF-8"),
    ("a.jsonl", b'{"file_name": "a.png"', "line 1 is not JSON"),
    ("a.jsonl", b"[1]", r"line 1 \[1\]: it must be an object"),
    ("a.jsonl", b'{"file_name": "a.png", "text": [7]}', "line 1: a file name, and a text"),
])  # fmt: skip
def test_other_tables_are_refused_in_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        read_captions(tmp_path / name)
    assert "\n" not in str(error.value)


def test_captions_are_those_of_the_pictures_of_a_part(pictures):
    found = {}
    for split in ("train", "test", "all"):
        images = load_images(str(pictures / "pictures"), split=split, captions=pictures / "captions.csv")
        assert images.captions == [OF_BARS[images.classes[label] == "lying"] for label in images.labels]
        assert f"captions: {sum(map(len, images.captions))}, up to 2 an image" in str(images.found)
        found[split] = images.fingerprint()
    assert len({*found.values(), load_images(str(pictures / "pictures")).fingerprint()}) == 4


def test_captions_without_a_picture_are_counted_and_listed_and_pictures_without_one_are_counted(pictures, tmp_path):
    table = tmp_path / "some.csv"
    table.write_text("file,text\n0.png,first\nelsewhere/1.png,second\ngone.png,a\ngone.png,b\nlost\u202e.png,c")
    images = load_images(str(pictures / "pictures"), split="all", captions=table)
    assert images.captions[images.files.index("upright/0.png")] == ("first",)
    found = str(images.found)
    assert "left out: 4 captions that match no picture (elsewhere/1.png, gone.png, lost\\u202e.png)" in found
    assert f"{COUNT - 1} images without a caption" in found


@pytest.mark.parametrize(("rows", "words"), [
    ("gone.png,a", r"none of its 1 names is a picture in .* \(gone.png\): write them like"),
    ("same.png,a", "same.png may be lying/same.png and upright/same.png: write the folder, too"),
    (f"0.png,{'|'.join(map(str, range(101)))}", "0.png has 101 captions: give it at most 100"),
])  # fmt: skip
def test_captions_that_fit_no_picture_or_several_are_refused(pictures, tmp_path, rows, words):
    root = tmp_path / "pictures"
    for folder in ("lying", "upright"):
        (root / folder).mkdir(parents=True)
        Image.new("L", (8, 8)).save(root / folder / "same.png")
    Image.new("L", (8, 8)).save(root / "lying" / "0.png")
    (tmp_path / "a.csv").write_text("file_name,text\n" + rows.replace("|", "\n0.png,"))
    with pytest.raises(InputError, match=words):
        load_images(str(root), captions=tmp_path / "a.csv")


def test_captions_need_pictures_with_names(bars_file, pictures):
    with pytest.raises(InputError, match=r"`captions` .*: they go with a folder of pictures"):
        load_images(str(bars_file), captions=pictures / "captions.csv")


def test_captions_of_pictures_that_are_left_out_go_with_them(pictures, tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(5):
        Image.new("L", (8, 8), number).save(root / f"{number}.png")
    (root / "2.png").write_bytes(b"no picture")
    (tmp_path / "a.csv").write_text(
        "file_name,text\n" + "\n".join(f"{number}.png,text {number}" for number in range(5))
    )
    images = load_images(str(root), split="all", skip_unreadable=True, captions=tmp_path / "a.csv")
    assert images.captions == [(f"text {number}",) for number in (0, 1, 3, 4)]
    assert images.images[:, 0, 0, 0].tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("column", ["text", "captions", "words"])
def test_captions_of_a_data_set_of_the_hub_are_in_a_column(tmp_path, column):
    datasets = pytest.importorskip("datasets")
    images = [Image.new("L", (6, 6), number) for number in range(5)]
    texts = (
        [["one", "two "], [], ["three"], ["one"], ["four"]] if column == "captions" else ["one", " ", "a\tb", "c", None]
    )
    features = datasets.Features({
        "image": datasets.Image(),
        column: datasets.Sequence(datasets.Value("string")) if column == "captions" else datasets.Value("string"),
    })  # fmt: skip
    datasets.Dataset.from_dict({"image": images, column: texts}, features=features).to_parquet(tmp_path / "a.parquet")
    expected = {"captions": [("one", "two"), (), ("three",), ("one",), ("four",)]}
    expected = expected.get(column, [("one",), (), ("a b",), ("c",), ()])
    source = f"hf:{tmp_path / 'a.parquet'}"
    named = {} if column != "words" else {"captions": "words"}
    assert load_images(source, tmp_path / "cache", "all", **named).captions == expected
    if named:
        assert load_images(source, tmp_path / "cache", "all").captions is None
        with pytest.raises(InputError, match=r"`captions` 'image': .* has no such column of texts; it has words"):
            load_images(source, tmp_path / "cache", captions="image")
