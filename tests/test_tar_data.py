"""Tar shards of pictures: what is read of them, in which order, by how many, and what is refused."""

import gzip
import json
import os
import tarfile

import numpy as np
import pytest
import torch
from conftest import TINY_TOKENIZER, draw_bars
from written_shards import as_png, write_shards, write_tar

from codegrid import load
from codegrid.data.codes import CodeDataset
from codegrid.data.images import to_float
from codegrid.data.loading import StepSampler, in_order, load_batches, shuffle_within
from codegrid.data.names import find_data, make_absolute
from codegrid.data.sources import load_images
from codegrid.data.tar_images import TarImages
from codegrid.data.tar_pictures import shard_part
from codegrid.data.tar_places import expand_braces, find_shards
from codegrid.errors import InputError
from codegrid.pipelines.generation.chosen_data import data_at_hand, learnt_data
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.tokenizer import TokenizerObjective, train_tokenizer

PNG = as_png(draw_bars(1)[0][0])


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


@pytest.fixture
def in_shards(monkeypatch):
    """Data sets are never read into memory as a whole."""
    monkeypatch.setattr("codegrid.data.folder.IN_MEMORY_BYTES", 0)


@pytest.fixture
def bars(tmp_path):
    return write_shards(tmp_path / "d", [7, 20, 1, 12])


def pixels_of(images, numbers=None):
    batch = images.batch(range(len(images)) if numbers is None else numbers)
    return batch.images.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("memory", [0, 2**31])
def test_pictures_labels_and_names_are_those_of_the_members(tmp_path, bars, memory, monkeypatch):
    monkeypatch.setattr("codegrid.data.folder.IN_MEMORY_BYTES", memory)
    images, labels = bars
    whole = load_images(str(tmp_path / "d"), None, "all")
    assert isinstance(whole, TarImages) == (not memory)
    assert np.array_equal(pixels_of(whole), images) and np.array_equal(whole.labels, labels)
    assert whole.classes == ["0", "1"] and whole.files[6:8] == ["shard-000/00006.png", "shard-001/00007.png"]
    train, test = (load_images("tar", f"{tmp_path}/d/*.tar", part) for part in ("train", "test"))
    assert (len(train), len(test)) == (36, 4)
    assert np.array_equal(pixels_of(test), images[[18, 19, 38, 39]])  # every tenth of each class, as of a folder
    assert str(train.found) == (
        f"{tmp_path}/d/*.tar, train: 36 images in 2 classes (0 18, 1 18); test: 4 images; "
        "4 shards; test is held out; captions: 36"
    )
    assert train.fingerprint() != test.fingerprint()


@pytest.mark.parametrize(
    "pattern,places",
    [
        ("x.tar", ["x.tar"]),
        ("{a,b}-{8..10}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "b-8.tar", "b-9.tar", "b-10.tar"]),
        ("{08..10}.tar", ["08.tar", "09.tar", "10.tar"]),
        ("{2..0}{one}.tar", ["2{one}.tar", "1{one}.tar", "0{one}.tar"]),
        ("{a,b{1,2}}.tar", ["a.tar", "b1.tar", "a.tar", "b2.tar"]),
    ],
)
def test_braces_stand_for_numbers_and_texts(pattern, places):
    assert expand_braces(pattern) == places


def test_patterns_name_shards_in_natural_order_and_urls_as_they_stand(tmp_path):
    for name in ("10.tar", "2.tar", "notes.txt", "other.zip"):
        (tmp_path / name).touch()
    assert find_shards(f"{tmp_path}/*.tar") == find_shards(f"{tmp_path}/{{2,10}}.tar")
    assert find_shards(f"{tmp_path}/?.tar") == [f"{tmp_path}/2.tar"]
    assert find_shards("https://a.org/{1..2}.tar?x=3") == ["https://a.org/1.tar?x=3", "https://a.org/2.tar?x=3"]


@pytest.mark.parametrize(
    "pattern,reason",
    [
        ("{}/x-*.tar", "matches no file"),
        ("{}/x-{{0..3}}.tar", "no file .*x-0.tar"),
        ("{}/{{0..50}}.tar", "more than 50 shards"),
        ("{}/{{0..9}}-{{0..9}}.tar", "more than 50 shards"),
        ("", "needs shards"),
    ],
)
def test_a_pattern_that_names_no_shards_or_too_many_is_refused(tmp_path, pattern, reason, monkeypatch):
    monkeypatch.setattr("codegrid.data.tar_places.MAX_SHARDS", 50)
    with pytest.raises(InputError, match=reason):
        load_images("tar", pattern.format(tmp_path), "train")


def test_shards_are_told_from_pictures_and_found_again_from_anywhere(tmp_path, bars, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.chdir(tmp_path)
    for given in ("d", "d/*.tar", "d/shard-{000..003}.tar", "d/shard-000.tar", "https://a.org/{1..2}.tar?x=3"):
        assert find_data(given, None) == find_data(None, given) == ("tar", (given,))
        place = make_absolute("tar", (given,))[1]
        assert place == (given if "://" in given else f"{tmp_path}/{given}",)
        (tmp_path / "run.json").write_text(json.dumps({"command": "train-tokenizer", "data": ["tar", place]}))
        tokenizer = SimpleNamespace(loaded_from=tmp_path, provenance={})
        assert learnt_data(tokenizer) == ("tar", place)
        assert data_at_hand(tokenizer) == (None if "://" in given else ("tar", place))
    (tmp_path / "d" / "1.png").write_bytes(PNG)
    assert find_data("d", None) == ("imagefolder", ("d",))
    (tmp_path / "d" / "shard-000.tar").rename(tmp_path / "caf\udce9.tar")  # a name that is not UTF-8
    assert len(load_images(str(tmp_path / "caf\udce9.tar"), None, "all")) > 0
    for given in ("https://a.org/x.zip", "gone.tar.gz"):
        with pytest.raises(InputError, match=r"there is no such folder or file: give .* \.tar"):
            find_data(given, None)
    with pytest.raises(InputError, match="leave `data_root` out"):
        find_data("d/*.tar", "d")


@pytest.mark.parametrize(
    "place,part",
    [("a/imagenet-train-0001.tar", "train"), ("https://b.org/val/000.tar?test=1", "validation"),
     ("train/x.tar", "train"), ("train/test-1.tar", "test"), ("testament-01.tar", None), ("train-or-test.tar", None)],
)  # fmt: skip
def test_names_of_shards_and_their_folders_tell_parts(place, part):
    assert shard_part(place) == part


def test_parts_are_those_that_the_names_tell(tmp_path):
    images, _ = write_shards(tmp_path / "d", [5, 6, 4], "{}")
    for number, name in enumerate(["test.tar", "train.tar", "extra.tar"]):
        (tmp_path / "d" / str(number)).rename(tmp_path / "d" / name)
    train, test = (load_images("tar", f"{tmp_path}/d/*.tar", part) for part in ("train", "test"))
    assert np.array_equal(pixels_of(train), images[5:11]) and np.array_equal(pixels_of(test), images[:5])
    assert "train: 6 images in" in str(train.found) and "; test: 5 images; " in str(train.found)
    assert "1 beside the parts (extra)" in str(train.found) and len(load_images(f"{tmp_path}/d", None, "all")) == 11


def test_classes_may_be_names_and_each_picture_must_have_one(tmp_path):
    _, labels = write_shards(tmp_path, [10], classes=["up 10", "up 9"])
    images = load_images("tar", f"{tmp_path}/*.tar", "all")
    assert images.classes == ["up 9", "up 10"] and np.array_equal(images.labels, 1 - labels)
    write_tar(tmp_path / "none.tar", [("a.png", PNG)])
    assert load_images("tar", f"{tmp_path}/none.tar", "all").labels is None
    with pytest.raises(InputError, match=r"none/a\.png has no class \(a member \.cls\), but others do"):
        load_images("tar", f"{tmp_path}/*.tar", "train")
    write_tar(tmp_path / "none.tar", [("a.png", PNG), ("a.cls", b"123456789")])
    with pytest.raises(InputError, match="class 123456789: classes must be below"):
        load_images("tar", f"{tmp_path}/none.tar", "train")
    write_tar(tmp_path / "none.tar", [("a.png", PNG), ("a.jpg", PNG)])
    with pytest.raises(InputError, match=r"none\.tar: one sample has a\.png and a\.jpg"):
        load_images("tar", f"{tmp_path}/none.tar", "train")


@pytest.mark.parametrize("memory", [0, 2**31])
def test_captions_are_in_texts_and_json_beside_the_pictures(tmp_path, memory, monkeypatch):
    monkeypatch.setattr("codegrid.data.folder.IN_MEMORY_BYTES", memory)
    members = {
        "a": [(".png", PNG), (".txt", b" a red\n heart \n")],
        "b": [(".json", b'{"width": 3, "caption": ["b", "", 7, "bee"]}'), (".txt", "grün".encode()), (".png", PNG)],
        "c": [(".json", b'{"text": "c", "caption": "not this"}'), (".png", PNG), (".txt", b"c")],
        "d": [(".png", PNG), (".json", b'{"width": 3}')],  # none of these holds a caption
        "e": [(".png", PNG), (".json", b"{")],
        "f": [(".png", PNG), (".json", b"[" * 10**5)],
        "g": [(".png", PNG), (".txt", b" "), (".seg.txt", b"g")],
        "h": [(".png", PNG), (".txt", b"h" * (2**20 + 1))],
        "i": [(".json", b'{"text": ["a", "b"]}')],  # of no picture
        "j": [(".png", PNG), (".json", json.dumps({"text": [f"{i}" for i in range(200)]}).encode())],
    }
    pattern = str(write_tar(tmp_path / "s.tar", [(k + ending, x) for k, each in members.items() for ending, x in each]))
    for _ in range(2):  # the second time from the index
        images = load_images("tar", pattern, "all")
        assert images.captions[:3] == [("a red heart",), ("b", "bee", "grün"), ("c",)]
        assert images.captions[3:8] == [()] * 5 and images.captions[8] == tuple(map(str, range(100)))
    found = str(images.found)
    assert "left out: 6 other members (.json, .seg.txt, .txt)" in found
    assert "captions: 105, up to 100 an image; 5 images without a caption" in found
    (train, test), other = (load_images("tar", pattern, part) for part in ("train", "test")), images.fingerprint()
    assert [*train.captions, *test.captions] == [
        images.captions[images.files.index(x)] for x in train.files + test.files
    ]
    members["a"][1] = (".txt", b" a red\n heard \n")  # as long as before
    write_tar(tmp_path / "s.tar", [(k + ending, x) for k, each in members.items() for ending, x in each])
    os.utime(pattern, (1, 1))
    assert load_images("tar", pattern, "all").fingerprint() != other


def test_what_is_no_plain_member_is_left_out_and_counted(tmp_path):
    odd = []
    for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)):
        info = tarfile.TarInfo(f"odd-{number}.png")
        info.type, info.linkname = kind, "/etc/passwd"
        odd.append(info)
    folder = tarfile.TarInfo("x")
    folder.type = tarfile.DIRTYPE
    more = [("x/._a.png", b"mac"), ("x/a.seg.png", PNG), ("x/b.PNG", PNG), ("x/c.json", b"{}"), ("README", b"")]
    write_tar(tmp_path / "d.tar", [*odd, folder, ("x/a.png", PNG), *more])
    write_tar(tmp_path / "empty.tar", [])
    images = load_images("tar", f"{tmp_path}/*.tar", "all")
    assert images.files == ["d/x/a.png", "d/x/b.PNG"]
    assert "left out: 8 other members (.json, .seg.png, hidden, …), 1 without pictures (empty)" in str(images.found)


def test_what_some_systems_add_before_each_file_divides_no_sample(tmp_path):
    files = [("a.cls", b"1"), ("a.png", PNG), ("b.cls", b"0"), ("b.png", PNG)]
    write_tar(
        tmp_path / "d.tar", [each for name, content in files for each in ((f"._{name}", b"mac"), (name, content))]
    )
    assert load_images("tar", str(tmp_path / "d.tar"), "all").labels.tolist() == [1, 0]


def forge_size(content, size):
    """Let the first header claim that its file has so many bytes."""
    header = bytearray(content[:512])
    header[124:136] = (256**12 + size).to_bytes(13, "big")[1:] if size < 0 else b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[512:]


@pytest.mark.parametrize(
    "damage,kept",
    [
        (lambda content: content[: 10 * 1024 + 600], 10),  # within a picture
        (lambda content: content[: 10 * 1024], 9),  # between two
        (lambda content: content[: 10 * 1024 + 100], 9),  # within a header
        (lambda content: content[: 10 * 1024] + b"x" * 512 + content[10 * 1024 + 512 :], 9),
        (lambda content: forge_size(content, -1024), 0),
        (lambda content: forge_size(content, 8**11 - 1), 0),
        (lambda content: b"x" + content[1:], 0),
        (gzip.compress, 0),
        (lambda content: b"", 0),
        (lambda content: b"a picture" * 1000, 0),
    ],
)
def test_a_shard_that_is_damaged_is_named_or_read_up_to_there(tmp_path, damage, kept):
    path = write_tar(tmp_path / "d" / "1.tar", [(f"{i:02d}.png", PNG) for i in range(20)])
    assert len(PNG) <= 512  # so that each has a kilobyte
    write_tar(tmp_path / "d" / "2.tar", [("x.png", PNG)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        InputError, match=r"1\.tar is not a complete tar file \(.*\): make it again, or see `skip_unread"
    ):
        load_images("tar", f"{tmp_path}/d/*.tar", "all")
    images = load_images("tar", f"{tmp_path}/d/*.tar", "all", skip_unreadable=True)
    assert len(images) == kept + 1 and "1 cut off (1)" in str(images.found)


def test_headers_that_claim_memory_or_lead_into_each_other_are_refused(tmp_path):
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {"comment": "x" * 2**21}
    write_tar(tmp_path / "pax.tar", [info], format=tarfile.PAX_FORMAT)
    longname = tarfile.TarInfo("././@LongLink")
    longname.type = tarfile.GNUTYPE_LONGNAME
    (tmp_path / "deep.tar").write_bytes(longname.tobuf(tarfile.GNU_FORMAT) * 3000)
    for name, reason in (("pax", "a header of 2,"), ("deep", "recursion|header")):
        with pytest.raises(InputError, match=rf"{name}\.tar is not a complete tar file \(.*{reason}"):
            load_images("tar", f"{tmp_path}/{name}.tar", "all")


@pytest.mark.parametrize("memory", [0, 2**31])
def test_a_member_that_is_no_picture_is_named_or_left_out(tmp_path, memory, monkeypatch):
    monkeypatch.setattr("codegrid.data.folder.IN_MEMORY_BYTES", memory)
    write_tar(tmp_path / "d.tar", [("a.png", PNG), ("b.png", b"no picture"), ("c.png", PNG), ("d.jpg", PNG[:90])])
    with pytest.raises(InputError, match=r"d/b\.png is not a readable picture .*; 1 more cannot be read: d/d\.jpg"):
        load_images("tar", f"{tmp_path}/d.tar", "all").batch([1])
    images = load_images("tar", f"{tmp_path}/d.tar", "all", skip_unreadable=True)
    assert images.files == ["d/a.png", "d/c.png"] and len(images.batch([0, 1]).images) == 2
    assert "2 unreadable (d/b.png, d/d.jpg)" in str(images.found)


SHARD_OF = np.repeat(np.arange(9), [5, 30, 1, 12, 40, 3, 3, 8, 20])


@pytest.mark.parametrize("buffer", [1, 7, 50, 1000])
def test_an_epoch_goes_from_shard_to_shard_and_shuffles_no_further_than_the_buffer(buffer):
    orders = [shuffle_within(SHARD_OF, buffer, seed=3, epoch=epoch) for epoch in (0, 1, 0)]
    assert np.array_equal(orders[0], orders[2]) and not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], shuffle_within(SHARD_OF, buffer, seed=4, epoch=0))
    rows = [shuffle_within(SHARD_OF, 1, seed=3, epoch=epoch) for epoch in (0, 1)]
    for order, row in zip(orders, rows, strict=False):
        assert sorted(order) == list(range(len(SHARD_OF)))
        assert np.count_nonzero(np.diff(SHARD_OF[row])) == 8  # a shard that was left is not come back to
        moved = np.abs(np.argsort(order) - np.argsort(row))
        assert moved.max() < buffer and (buffer == 1 or moved.max() > 0)


@pytest.fixture
def training(tmp_path, in_shards):
    """The training part of shards of many sizes, read in pieces."""
    write_shards(tmp_path / "d", [7, 20, 1, 12, 33])
    images = load_images("tar", f"{tmp_path}/d/*.tar", "train")
    images.shuffle_buffer = 10
    return images


def test_batches_are_the_same_after_a_resume_for_processes_and_for_workers(training):
    def read(start, workers=0, rank=0, processes=1):
        steps = StepSampler(len(training), 12, 5, start, 9, rank, processes, training.order)
        return [batch.images for batch in load_batches(training, steps, workers)]

    whole = read(0)
    for start, workers in ((4, 0), (7, 2)):
        assert all(map(torch.equal, read(start, workers), whole[start:]))
    shares = [read(0, rank=rank, processes=3) for rank in range(3)]
    assert all(torch.equal(torch.cat(parts), batch) for *parts, batch in zip(*shares, whole, strict=True))
    numbers = [i for batch in StepSampler(len(training), 12, 5, 0, 9, order=training.order) for i in batch]
    assert len(training) == 66 and sorted(numbers[:66]) == list(range(66)) and numbers[:30] != numbers[66:96]


def test_a_training_from_shards_goes_on_bit_for_bit_where_it_was_stopped(tmp_path, in_shards, bars, monkeypatch):
    options = {"hidden_channels": 8, "embedding_dim": 4, "num_embeddings": 8}
    settings = {"dataset": str(tmp_path / "d"), "options": options, "batch_size": 8, "steps": 4, "precision": "fp32",
                "shuffle_buffer": 9, "save_every": 2, "validate_every": 4, "num_workers": 0}  # fmt: skip
    losses = TokenizerObjective.losses

    def stop_at_2(self, player, wrapped, batch, moment):
        if moment.step == 2:
            raise InterruptedError
        return losses(self, player, wrapped, batch, moment)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(TokenizerObjective, "losses", stop_at_2)
        train_tokenizer(TrainTokenizer(output=str(tmp_path / "stopped"), **settings))
    for name in ("stopped", "whole"):
        train_tokenizer(TrainTokenizer(output=str(tmp_path / name), **settings))
    assert load(tmp_path / "stopped").fingerprint() == load(tmp_path / "whole").fingerprint()
    with pytest.raises(InputError, match="shuffle_buffer 9, not 10"):
        train_tokenizer(TrainTokenizer(output=str(tmp_path / "whole"), **{**settings, "shuffle_buffer": 10}))


def test_codes_are_exported_in_the_order_of_the_shards_with_names_and_labels(
    tmp_path, in_shards, bars, small_run, run_script, monkeypatch
):
    monkeypatch.setattr("codegrid.data.code_writer.SHARD_SIZE", 15)
    images, labels = bars
    flags = ("--tokenizer", small_run / "tokenizer", "--dataset", tmp_path / "d", "--output", tmp_path / "codes",
             "--num-workers", "0")  # fmt: skip
    assert run_script("export_codes", *flags, "--split", "all", "--batch-size", "4").code == 0
    codes = CodeDataset(tmp_path / "codes")
    expected = load(small_run / "tokenizer").encode(to_float(torch.from_numpy(images).permute(0, 3, 1, 2)))
    assert all(map(torch.equal, codes.batch(range(40)).codes, expected)) and np.array_equal(codes.labels, labels)
    assert codes.batch([7]).columns["files"] == ["shard-001/00007.png"]
    (next((tmp_path / "codes").glob("codes-00001*"))).unlink()
    assert "making it again" in run_script("export_codes", *flags, "--split", "all").out
    assert all(map(torch.equal, CodeDataset(tmp_path / "codes").batch(range(40)).codes, expected))


def test_an_index_is_made_once_and_again_where_the_shard_was_changed_or_the_index_damaged(
    tmp_path, bars, in_shards, monkeypatch
):
    import codegrid.data.tar_shards as tar_shards

    made, index_tar = [], tar_shards.index_tar
    monkeypatch.setattr(tar_shards, "index_tar", lambda path: made.append(path.name) or index_tar(path))
    pattern = f"{tmp_path}/d/*.tar"
    images, again = (load_images("tar", pattern, "all") for _ in range(2))
    assert len(made) == 4 and images.fingerprint() == again.fingerprint()
    write_tar(tmp_path / "d" / "shard-002.tar", [("a.png", PNG), ("a.cls", b"1"), ("b.png", PNG), ("b.cls", b"1")])
    with pytest.raises(InputError, match=r"shard-002\.tar was changed after its index was made"):
        images.batch([27])
    other = load_images("tar", pattern, "all")
    assert made[4:] == ["shard-002.tar"] and len(other) == 41 and other.fingerprint() != images.fingerprint()
    new, times = tmp_path / "new.tar", (tmp_path / "d" / "shard-002.tar").stat()
    for first, second in ((0, 0), (1, 0)):  # as large as before, and said to be as old
        write_tar(new, [("a.png", PNG), ("a.cls", b"%d" % first), ("b.png", PNG), ("b.cls", b"%d" % second)])
        os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
        new.rename(tmp_path / "d" / "shard-002.tar")
        assert load_images("tar", pattern, "all").labels[27:29].tolist() == [first, second]
    made[5:] = []
    for index in tmp_path.glob("caches/codegrid/shards/*/index.json"):
        index.write_text(index.read_text().replace("offsets", "offset"))
    assert len(load_images("tar", pattern, "all")) == 41 and len(made) == 9
    (tmp_path / "d" / "shard-000.tar").unlink()
    with pytest.raises(InputError, match=r"shard-000\.tar is gone"):
        other.batch([0])


def test_shards_are_read_where_no_index_can_be_kept(tmp_path, bars, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load_images(str(tmp_path / "d"), None, "all")) == 40


def test_where_indices_are_kept_nobody_else_may_write_though_they_may_elsewhere(tmp_path, bars):
    before = os.umask(0)
    try:
        load_images("tar", f"{tmp_path}/d/*.tar", "all")
    finally:
        os.umask(before)
    assert list(tmp_path.glob("caches/codegrid/shards/*/index.json"))
    assert not (tmp_path / "caches" / "codegrid").stat().st_mode & 0o077


def test_a_command_reads_shards_by_their_pattern(tmp_path, bars, run_script):
    flags = ("--dataset", tmp_path / "d" / "shard-{000..003}.tar", "--dry-run", "--output", tmp_path / "run")
    result = run_script("train_tokenizer", *flags, *TINY_TOKENIZER)
    assert result.code == 0 and "36 images in 2 classes (0 18, 1 18); test: 4 images" in result.out
    assert len(list(in_order(36, 10))) == 4
