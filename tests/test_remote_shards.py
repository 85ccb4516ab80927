"""Tar shards behind URLs: fetched when they are needed, a bounded number of them, once each, and checked."""

import threading

import numpy as np
import pytest
import torch
from test_tar_data import pixels_of
from written_shards import serve, write_shards, write_tar

import codegrid.data.tar_shards as tar_shards
from codegrid.data.loading import StepSampler, in_order, load_batches
from codegrid.data.sources import load_images
from codegrid.data.tar_shards import Shard, cache_folder
from codegrid.errors import InputError

COUNTS = [4, 9, 6, 5, 8, 7, 3, 6, 5, 7, 4, 6]


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr("codegrid.data.folder.IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(tar_shards, "PAUSE", 0)


@pytest.fixture
def server(tmp_path):
    with serve(tmp_path / "d") as served:
        yield served


@pytest.fixture
def bars(tmp_path, server):
    return write_shards(tmp_path / "d", COUNTS, "{}.tar")


def load(server, split="all", numbers="{0..11}"):
    return load_images(f"{server.url}/{numbers}.tar", None, split)


def kept():
    """The bytes of the shards that are here."""
    return [path.stat().st_size for path in cache_folder().glob("*/shard.tar")]


def test_shards_far_away_are_read_as_those_that_are_here_and_fetched_once(tmp_path, server, bars):
    images = load(server)
    assert np.array_equal(pixels_of(images), bars[0]) and np.array_equal(images.labels, bars[1])
    assert images.files[4] == "1/00004.png" and images.variance() > 0
    assert load(server).fingerprint() == images.fingerprint()
    assert set(server.asked.values()) == {1} and len(server.asked) == 12
    assert not np.array_equal(images.order(0, 0), images.order(0, 1))


def test_held_out_are_whole_shards_so_that_few_are_fetched_for_them(server, bars):
    train, test = load(server, "train"), load(server, "test")
    assert test.files == [f"0/{number:05d}.png" for number in range(4)] and len(train) == 66
    assert "test: 4 images" in str(train.found) and "test is held out, as whole shards: 1" in str(test.found)
    few = load(server, "test", "{1..3}")
    assert few.files == ["3/00022.png", "3/00023.png"]  # of too few shards: a tenth of each class


def test_shards_in_the_order_of_their_classes_are_not_held_out(tmp_path, server):
    for number in range(10):
        write_shards(tmp_path / "d", [3], f"{number}.tar", classes=[f"{number}"] * 2)
    with pytest.raises(InputError, match=r"sorted by class \(class 0 is only in held-out ones"):
        load(server, "train", "{0..9}")


def test_a_bounded_number_of_shards_is_here_and_batches_do_not_depend_on_it(server, bars, monkeypatch):
    def read(images, workers=0):
        images.shuffle_buffer = 6
        steps = StepSampler(len(images), 7, 1, 3, 15, order=images.order)
        return [batch.images for batch in load_batches(images, steps, workers)]

    whole = read(load(server))
    size, most = max(kept()), []
    for path in cache_folder().glob("*/shard.tar"):
        path.unlink()
    monkeypatch.setattr(tar_shards, "cache_room", lambda: 7 * size)
    monkeypatch.setattr("codegrid.data.tar_images.cache_room", lambda: 7 * size)
    monkeypatch.setattr("codegrid.data.tar_images.AHEAD", 10)
    make_room = tar_shards.make_room
    monkeypatch.setattr(tar_shards, "make_room", lambda *shard: (make_room(*shard), most.append(sum(kept()))))
    for workers in (0, 2):
        assert all(map(torch.equal, read(load(server), workers), whole))
    assert sum(kept()) <= 7 * size and max(most) <= 7 * size


def test_more_shards_at_once_than_there_is_room_for_are_refused(server, bars, monkeypatch):
    images = load(server)
    monkeypatch.setattr("codegrid.data.tar_images.cache_room", lambda: 3 * max(kept()))
    images.shuffle_buffer = 3
    assert len(images.order(0, 0)) == 70
    images.shuffle_buffer = 30
    with pytest.raises(InputError, match=r"`shuffle_buffer` 30: it needs .* bytes of shards at once.*XDG_CACHE_HOME"):
        images.order(0, 0)
    monkeypatch.setattr(tar_shards, "cache_room", lambda: 100)
    with pytest.raises(InputError, match=r"/12\.tar has 10,240 bytes, but fetched shards may take 100"):
        write_shards(server.folder, [1], "12.tar")
        load(server, numbers="12")


def test_each_batch_tells_the_shards_that_come_up_in_time(server, bars, monkeypatch):
    monkeypatch.setattr("codegrid.data.tar_images.AHEAD", 12)
    images = load(server)
    told, numbers = set(), []
    for batch in images.look_ahead(in_order(len(images), 5)):
        numbers += batch
        told |= set(batch.shards)
        assert set(images.paths.shard_of[batch]) <= told
        assert len(told) < 12 or batch[-1] > 40
    assert numbers == list(range(70)) and told == set(range(12))
    monkeypatch.setattr("codegrid.data.tar_images.AHEAD", 1000)
    monkeypatch.setattr("codegrid.data.tar_images.cache_room", lambda: 4 * max(kept()))  # half of it are few shards
    first = next(iter(images.look_ahead(in_order(len(images), 1))))
    assert 1 < len(first.shards) < 6


def test_shards_are_fetched_while_others_are_read(server, bars, monkeypatch):
    monkeypatch.setattr("codegrid.data.tar_images.AHEAD", 12)
    images = load(server)
    for path in cache_folder().glob("*/shard.tar"):
        path.unlink()
    batches = load_batches(images, in_order(len(images), 4))
    next(batches)
    for thread in threading.enumerate():
        if thread.daemon and "_fetch" in thread.name:
            thread.join()
    assert len(kept()) > 2  # the first batch needs one


@pytest.mark.parametrize("fault", [503, 429, "cut"])
def test_a_fault_that_passes_is_waited_for(server, bars, fault):
    server.faults["3.tar"] = [fault, fault]
    assert np.array_equal(pixels_of(load(server)), bars[0]) and server.asked["3.tar"] == 3


@pytest.mark.parametrize(
    "fault,tried,reason",
    [
        (404, 1, r"\(404 Not Found\): check the address"),
        (403, 1, r"\(403 Forbidden\)"),
        (500, 5, r"\(500 Internal Server Error, tried 5 times\)"),
        ("cut", 5, r"\(it ended after .* of .* bytes, tried 5 times\)"),
        ("endless", 1, "the server does not say how long"),
    ],
)
def test_a_shard_that_cannot_be_fetched_is_named_after_a_bounded_number_of_tries(server, bars, fault, tried, reason):
    server.faults["3.tar"] = [fault] * 10
    with pytest.raises(InputError, match=rf"/3\.tar.*{reason}"):
        load(server, numbers="3")
    assert server.asked["3.tar"] == tried and not kept()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/{}.tar", "http://no such host/{}.tar", "http://[/{}.tar"])
def test_an_address_that_leads_nowhere_is_one_line(url):
    with pytest.raises(InputError, match="cannot fetch http"):
        load_images("tar", url.format("a"), "all")


def test_a_shard_that_was_changed_there_is_refused_until_a_new_start(server, bars):
    images = load(server)
    write_shards(server.folder, [9], "1.tar")
    assert len(pixels_of(images)) == 70  # those that were fetched
    for path in cache_folder().glob("*/shard.tar"):
        path.unlink()
    with pytest.raises(InputError, match=r"/1\.tar was changed after its index was made: start again"):
        pixels_of(images)
    again = load(server)
    assert len(again) == 70 and again.fingerprint() != images.fingerprint()


def test_a_shard_cut_off_there_is_a_damaged_one_and_a_folder_without_any_pictures_none(server):
    path = write_tar(server.folder / "0.tar", [("a.png", b"x")])
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match=r"0\.tar is not a complete tar file"):
        load(server, numbers="0")
    write_tar(server.folder / "1.tar", [("a.txt", b"x")])
    with pytest.raises(InputError, match=r"1\.tar.* holds no pictures"):
        load(server, numbers="1")


def test_of_several_that_need_a_shard_at_once_one_fetches_it(server, bars):
    shards = [Shard(f"{server.url}/5.tar") for _ in range(6)]
    threads = [threading.Thread(target=shard.index) for shard in shards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked["5.tar"] == 1 and len({len(shard.index().names) for shard in shards}) == 1
