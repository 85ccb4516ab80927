"""Data sets that Hugging Face `datasets` reads: their pictures, labels and parts, from a local folder."""

import io
import json
import pickle
import sys

import numpy as np
import pytest
import torch
from conftest import TINY_TOKENIZER, draw_bars
from PIL import Image

from codegrid.data.folder import FolderImages
from codegrid.data.hub import HubImages
from codegrid.data.sources import load_images
from codegrid.errors import InputError

datasets = pytest.importorskip("datasets")
pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
NAMES = ["upright", "lying"]


def encode(pixels, form="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels).squeeze()).save(file, form, **options)
    return file.getvalue()


BLACK = encode(np.zeros((8, 8), np.uint8))


def save(folder, pictures, labels=None, part="train", column="image", names=NAMES, **more):
    """Write one part of a data set of encoded pictures."""
    kinds = {column: datasets.Image(), **{name: datasets.Image() for name in more}}
    columns = {
        name: [p and {"bytes": p, "path": None} for p in values] for name, values in {column: pictures, **more}.items()
    }
    if labels is not None:
        kinds["label"], columns["label"] = datasets.ClassLabel(names=names), list(labels)
    folder.mkdir(exist_ok=True)
    file = folder / f"{part}-00000-of-00001.parquet"
    datasets.Dataset.from_dict(columns, datasets.Features(kinds)).to_parquet(file)


@pytest.fixture
def load(tmp_path):
    """Load a part of the data set in tmp_path/d."""

    def call(split="train", size=(), channels=None, name="d"):
        return load_images(f"hf:{tmp_path / name}", tmp_path / "cache", split, size, channels)

    return call


@pytest.fixture
def bars(tmp_path):
    images, labels = draw_bars(40)
    save(tmp_path / "d", [encode(image) for image in images], labels)
    return images, labels


def test_pictures_labels_and_names_are_those_of_the_data_set(bars, load):
    images, labels = bars
    train, test = load(), load("test")
    assert (len(train), len(test)) == (36, 4) and train.classes == test.classes == NAMES
    held_out = [18, 19, 38, 39]  # every tenth of each class
    assert np.array_equal(test.images.permute(0, 2, 3, 1).numpy(), images[held_out])
    assert np.array_equal(train.labels.numpy(), np.delete(labels, held_out))
    assert train.image_size == (12, 20) and train.in_channels == 1


@pytest.mark.parametrize("parts,expected", [(("test",), 5), (("validation",), 5), (("validation", "test"), 5)])
def test_a_part_for_testing_is_used_where_there_is_one(bars, tmp_path, load, parts, expected):
    for number, part in enumerate(reversed(parts)):
        save(
            tmp_path / "d",
            [encode(image) for image in draw_bars(expected + number)[0]],
            [0] * (expected + number),
            part,
        )
    assert len(load()) == 40 and len(load("test")) == expected and len(load("all")) == 40 + expected


def test_an_image_folder_is_read_as_our_own_reader_does(tmp_path, load):
    for number, image in enumerate(draw_bars(20, channels=3)[0]):
        folder = tmp_path / "d" / NAMES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:02d}.png")  # or else in another order: ours has 2 before 10
    ours, theirs = load_images("imagefolder", tmp_path / "d", "train"), load()
    assert theirs.classes == ours.classes and sorted(theirs.labels.tolist()) == sorted(ours.labels.tolist())
    assert sorted(image.numpy().tobytes() for image in theirs.images) == sorted(
        image.numpy().tobytes() for image in ours.images
    )


def test_turned_transparent_and_16_bit_pictures_are_decoded_as_those_of_a_folder(tmp_path, load):
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[274] = 6
    pictures = [
        encode(random.integers(0, 256, (9, 14, 3), dtype=np.uint8), "JPEG", exif=exif),
        encode(random.integers(0, 256, (14, 9, 4), dtype=np.uint8)),
        encode(random.integers(0, 2**16, (14, 9), dtype=np.uint16)),
    ]
    (tmp_path / "files").mkdir()
    for number, content in enumerate(pictures):
        (tmp_path / "files" / f"{number}.img.png").write_bytes(content)
    save(tmp_path / "d", [*pictures, pictures[0]], part="train")
    files = FolderImages(tmp_path, sorted((tmp_path / "files").iterdir()), None, [], None, None)
    assert torch.equal(load().images, files.batch(range(3)).images)
    assert torch.equal(load(size=(6, 7), channels=1).images[0], load(size=(6, 7), channels=1).images[0])


def test_what_does_not_fit_in_memory_is_decoded_on_demand_in_other_processes_too(bars, load, monkeypatch):
    kept = load(size=(8, 8))
    monkeypatch.setattr("codegrid.data.folder.IN_MEMORY_BYTES", 0)
    on_demand = pickle.loads(pickle.dumps(load(size=(8, 8))))
    assert isinstance(on_demand, HubImages)
    one, other = kept.batch(range(36)), on_demand.batch(range(36))
    assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    assert on_demand.variance() == kept.variance()


def test_the_fingerprint_follows_the_content_and_not_the_place(bars, tmp_path, load, monkeypatch):
    images, labels = bars
    save(tmp_path / "copy", [encode(image) for image in images], labels)
    save(tmp_path / "other", [encode(image) for image in images[::-1]], labels)
    save(tmp_path / "relabelled", [encode(image) for image in images], 1 - labels)
    for memory in (2**31, 0):
        monkeypatch.setattr("codegrid.data.folder.IN_MEMORY_BYTES", memory)
        here, copy, *others = (load(name=name).fingerprint() for name in ("d", "copy", "other", "relabelled"))
        assert here == copy == load().fingerprint() and here not in others


def test_pictures_that_nobody_called_so_and_labels_that_are_hidden(tmp_path, load):
    pictures = [encode(image) for image in draw_bars(4)[0]]
    (tmp_path / "d").mkdir()
    datasets.Dataset.from_dict({"x": pictures}).to_parquet(tmp_path / "d" / "train.parquet")
    assert len(load()) == 3 and load().labels is None
    save(tmp_path / "hidden", pictures, [-1] * 4)
    assert load(name="hidden").labels is None and load(name="hidden").classes == []


@pytest.mark.parametrize(
    "labels,classes",
    [
        ([2, 0, 1, 0], ["0", "1", "2"]),
        (["cat", "ant", "bee", "ant"], ["ant", "bee", "cat"]),
        ([2, 0, 1, -1], []),
        (["cat", None, "bee", "ant"], []),
        ([0.5, 1.0, 0.0, 0.0], []),
        ([2**63, 0, 1, 0], []),
    ],
    ids=str,
)
def test_labels_that_nobody_declared_are_read_as_other_programs_write_them(tmp_path, load, labels, classes):
    (tmp_path / "d").mkdir()
    pictures = [{"bytes": encode(image)} for image in draw_bars(4)[0]]
    for part, some in (("train", slice(4)), ("test", slice(2))):  # of which the classes are those of both
        kind = pa.uint64() if 2**63 in labels else None
        table = pa.table({"image": pictures[some], "id": list("abcd")[some], "label": pa.array(labels[some], kind)})
        pq.write_table(table, tmp_path / "d" / f"{part}.parquet")
    train, test = load(), load("test")
    assert train.classes == test.classes == classes
    assert not classes or (train.labels.tolist(), test.labels.tolist()) == ([2, 0, 1, 0], [2, 0])


def test_pictures_that_are_named_and_not_held_are_told_apart_by_the_sizes_of_their_files(tmp_path, load, monkeypatch):
    monkeypatch.setattr("codegrid.data.folder.IN_MEMORY_BYTES", 0)
    (tmp_path / "d").mkdir()
    for number, image in enumerate(draw_bars(40)[0]):
        Image.fromarray(image[..., 0]).save(tmp_path / "d" / f"{number:02}.png")
    files = sorted((tmp_path / "d").iterdir())
    before, last = load(), files[38]
    assert before.paths.sizes().tolist() == [files[row].stat().st_size for row in before.paths.rows]
    earlier = before.fingerprint()
    assert load().fingerprint() == earlier
    last.write_bytes(last.read_bytes() + b"more")
    assert load().fingerprint() != earlier


def name_files(folder, paths):
    """Write a data set that names its pictures' files in place of their bytes."""
    folder.mkdir(exist_ok=True)
    rows = [{"bytes": None, "path": str(path)} for path in paths]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), folder / "train.parquet")


def write_picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(np.full((8, 8), value, np.uint8)))
    return path


def test_pictures_that_are_named_are_read_from_below_the_data_set(tmp_path, load):
    paths = [write_picture(tmp_path / "d" / "pictures" / f"{number}.png", number) for number in range(4)]
    name_files(tmp_path / "d", ["pictures/0.png", paths[1], "pictures/../pictures/2.png", paths[3]])
    assert load("all").images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("memory", [2**31, 0])
@pytest.mark.parametrize("name", ["../mine.png", "{mine}", "link.png", "linked/mine.png", "a\0b", ""])
def test_no_picture_is_read_from_outside_of_the_data_set(tmp_path, load, monkeypatch, name, memory):
    monkeypatch.setattr("codegrid.data.folder.IN_MEMORY_BYTES", memory)
    mine = write_picture(tmp_path / "mine.png")
    ours = write_picture(tmp_path / "d" / "a.png")
    (tmp_path / "d" / "link.png").symlink_to(mine)
    (tmp_path / "d" / "linked").symlink_to(tmp_path)
    name_files(tmp_path / "d", [ours] * 3 + [name.format(mine=mine)])
    with pytest.raises(InputError, match="picture 3 is missing"):
        load("all").batch([3])


def test_a_lone_file_reads_nothing_beside_it(tmp_path):
    write_picture(tmp_path / "d" / "mine.png")
    name_files(tmp_path / "d", ["mine.png"] * 2)
    with pytest.raises(InputError, match="is missing"):
        load_images(str(tmp_path / "d" / "train.parquet"), None, "all")
    save(tmp_path / "d", [BLACK] * 4, [0, 1, 0, 1])
    assert len(load_images(str(tmp_path / "d" / "train-00000-of-00001.parquet"), None, "all")) == 4


@pytest.mark.parametrize("files", ["../mine.csv", "{mine}", "linked/*.csv"])
def test_a_data_set_whose_settings_name_files_elsewhere_is_refused(tmp_path, load, files):
    mine = tmp_path / "mine" / "mine.csv"
    mine.parent.mkdir()
    mine.write_text("image\na\n")
    (tmp_path / "mine.csv").write_text("image\na\n")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "linked").symlink_to(mine.parent)
    settings = f"configs:\n- config_name: default\n  data_files: {files.format(mine=mine)}\n"
    (tmp_path / "d" / "README.md").write_text(f"---\n{settings}---\n")
    with pytest.raises(InputError, match="is outside of it"):
        load()


def test_the_column_called_image_is_preferred(tmp_path, load):
    dark, light = (encode(np.full((8, 8), value, dtype=np.uint8)) for value in (0, 255))
    save(tmp_path / "d", [light] * 4, mask=[dark] * 4)
    assert load().images.min() == 255


LONG = encode(np.zeros((8, 9), np.uint8))


@pytest.mark.parametrize(
    "make,reason",
    [
        (lambda d: save(d, [BLACK] * 2, column="a", b=[BLACK] * 2), "several columns of images"),
        (lambda d: (d.mkdir(), (d / "train.csv").write_text("text,number\na,1\n")), "must have one column of images"),
        (lambda d: save(d, [BLACK] * 2, [0, -1]), "some labels are missing"),
        (lambda d: save(d, [b"no picture"] * 2), "picture 0 is not a readable picture"),
        (lambda d: save(d, [BLACK, None]), "picture 1 is missing"),
        (lambda d: save(d, [BLACK, BLACK, LONG, LONG]), "`image_size`"),
        (lambda d: d.mkdir(), "cannot load"),
        (lambda d: (d.mkdir(), (d / "d.py").write_text("raise SystemExit(3)")), "cannot load"),
        (lambda d: None, "no folder"),
    ],
    ids=range(9),
)
def test_what_cannot_be_read_is_one_line(make, reason, tmp_path, load):
    make(tmp_path / "d")
    with pytest.raises(InputError, match=reason):
        load(), load("test")


def test_large_pictures_are_refused_before_they_are_decoded(tmp_path, load, monkeypatch):
    save(tmp_path / "d", [encode(np.zeros((8, 8), np.uint8))] * 3)
    monkeypatch.setattr("codegrid.data.pictures.MAX_PIXELS", 63)
    with pytest.raises(InputError, match="at most 63 are read"):
        load()


def test_a_name_that_cannot_be_loaded_says_what_to_do(monkeypatch):
    def fail(*args, **options):
        assert "trust_remote_code" not in options
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr("datasets.load_dataset_builder", fail)
    with pytest.raises(InputError, match=r"no route.*check the name and the network"):
        load_images("hf:owner/name", None, "train")


def test_a_name_that_is_also_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beans").mkdir()
    with pytest.raises(InputError, match=r"hf:\./beans"):
        load_images("hf:beans", None, "train")


def test_without_datasets_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r'`dataset` hf:\./beans needs .*pip install "codegrid\[hub\]"'):
        load_images("hf:./beans", None, "train")


@pytest.mark.parametrize("name", ["mnits", "hf", ""])
def test_an_unknown_name_is_refused_with_those_that_there_are(name):
    with pytest.raises(InputError, match=r"`dataset` .*: there is no such .*hf:NAME, or one of mnist5k"):
        load_images(name, None, "train")


def test_every_script_takes_them(bars, tmp_path, run_script):
    data = ("--dataset", f"hf:{tmp_path / 'd'}", "--data-root", tmp_path / "cache")
    tokenizer = ("--tokenizer", tmp_path / "t")
    assert run_script("train_tokenizer", *data, "--output", tmp_path / "t", *TINY_TOKENIZER, "--steps", 2).code == 0
    assert run_script("export_codes", *data, *tokenizer, "--output", tmp_path / "c").code == 0
    assert run_script("evaluate", *data, *tokenizer, "--output", tmp_path / "e").code == 0
    header = json.loads((tmp_path / "c" / "manifest.json").read_text())["header"]
    assert header["classes"] == NAMES and header["num_images"] == 36
