"""Frames of videos with actions: how they are read, exported, held out and given to a prior.

Shapes: h w code grid.
"""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid import Grid, load_images
from codegrid.codes import HIDDEN
from codegrid.data import doom
from codegrid.data.videos import FramesInMemory, Windows
from codegrid.errors import InputError


def write_frames(root, lengths=(3, 4, 2), side=8, names=("left", "right"), in_each=False):
    """Episodes of grey frames, each brighter than the one before; the actions go through the names in turn."""
    rows = []
    for episode, length in enumerate(lengths):
        folder = root / f"walk {episode}"
        folder.mkdir(parents=True)
        for frame in range(length):
            shade = np.full((side, side), (40 * episode + 10 * frame) % 256, np.uint8)
            shade[0] = 0
            Image.fromarray(shade).save(folder / f"{frame}.png")
            rows.append((folder.name, names[frame % len(names)]))
        if in_each:
            own = [action for name, action in rows if name == folder.name]
            (folder / "actions.csv").write_text("\n".join(["action", *own]))
    if not in_each:
        (root / "actions.csv").write_text("\n".join(["episode,action", *map(",".join, rows)]))
    return root


@pytest.mark.parametrize("in_each", [False, True], ids=["one table", "a table each"])
def test_frames_know_their_episode_place_and_action(tmp_path, in_each):
    images = load_images("frames", write_frames(tmp_path / "walks", in_each=in_each), "all")
    assert images.actions == ("left", "right") and sorted(images.files)[:4] == [
        "walk 0/0.png", "walk 0/1.png", "walk 0/2.png", "walk 1/0.png"
    ]  # fmt: skip
    walks = [int(file[len("walk ")]) for file in images.files]
    frames, actions, episodes = (images.columns[name].tolist() for name in ("frame", "actions", "episode"))
    assert images.images[:, 0, 4, 0].tolist() == [40 * walk + 10 * n for walk, n in zip(walks, frames, strict=True)]
    assert actions == [frame % 2 for frame in frames]
    assert len(set(zip(walks, episodes, strict=True))) == 3 == len(set(episodes))


def test_whole_episodes_are_held_out(tmp_path):
    root = write_frames(tmp_path / "walks", (3,) * 12)
    train, test = (load_images("frames", root, split) for split in ("train", "test"))
    assert (
        len(train) + len(test) == 36 and len(test) % 3 == 0 and len(test) and f"{len(train)} frames" in str(test.found)
    )
    assert test.fingerprint() != train.fingerprint()


BAD = {
    "a row too few": (lambda root: cut_last_line(root / "actions.csv"), "1 actions for 2 frames of walk 2"),
    "an unknown episode": (
        lambda root: (root / "actions.csv").open("a").write("\nwalk 9,left"), "the episode walk 9, but there is no such"
    ),
    "an action beyond all numbers": (
        lambda root: replace_in(root / "actions.csv", "left", "1", "right", "99999999"), "has 100,000,000 actions"
    ),
    "no column of actions": (
        lambda root: (root / "actions.csv").write_text("a,b\n1,2"), "row 2: it needs episode and action"
    ),
    "a frame of another size": (
        lambda root: Image.new("L", (9, 9)).save(root / "walk 0" / "1.png"), "is 9×9, others are 8×8: give `image_size`"
    ),
}  # fmt: skip


def replace_in(path, *pairs):
    text = path.read_text()
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        text = text.replace(old, new)
    path.write_text(text)


def cut_last_line(path):
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))


@pytest.mark.parametrize("damage,reason", BAD.values(), ids=BAD)
def test_tables_and_frames_that_do_not_match_are_refused_in_a_line(tmp_path, damage, reason):
    root = write_frames(tmp_path / "walks")
    damage(root)
    with pytest.raises(InputError, match=reason):
        load_images("frames", root, "all")


def test_a_table_beside_folders_of_both_parts_is_not_passed_over(tmp_path):
    for part in ("train", "test"):
        write_frames(tmp_path / part)
    assert load_images("frames", tmp_path, "train").actions == ("left", "right")
    (tmp_path / "train" / "actions.csv").rename(tmp_path / "actions.csv")
    with pytest.raises(InputError, match=r"actions.csv is beside the folders for training and test"):
        load_images("frames", tmp_path, "train")


def test_an_episode_alone_leaves_none_to_hold_out(tmp_path):
    root = write_frames(tmp_path / "walks", (3,))
    assert len(load_images("frames", root, "train")) == 3
    with pytest.raises(InputError, match=r"the test part of .* holds no images"):
        load_images("frames", root, "test")


def test_a_folder_without_episodes_is_refused(tmp_path):
    with pytest.raises(InputError, match="give each episode a folder of pictures"):
        load_images("frames", tmp_path, "train")


def codes_of(lengths=(3, 4, 2), gap=None, goes_on=False):
    """Codes of frames that show their number, with columns; after frame `gap` one is missing.

    If it `goes_on`, the first frame of an episode is numbered after the last one of the episode before.
    """
    episodes = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
    frames = torch.cat([torch.arange(length) for length in lengths])
    if goes_on:
        frames = torch.arange(len(episodes))
    if gap is not None:
        frames[gap + 1 :][episodes[gap + 1 :] == episodes[gap]] += 1
    columns = {"episode": episodes, "frame": frames, "actions": torch.arange(len(episodes)) % 3}
    grid = torch.arange(len(episodes))[:, None, None].expand(-1, 2, 3)
    return FramesInMemory((grid,), (Grid((2, 3), 16),), columns)


@pytest.mark.parametrize("goes_on", [False, True])
def test_no_window_crosses_the_border_of_two_episodes(goes_on):
    batch = Windows(codes_of(goes_on=goes_on), 2).batch([0, 2, 3, 5, 8, 2])
    earlier = torch.stack([frame[:, 0, 0] for frame in batch.given.codes], 1).tolist()
    assert earlier == [[HIDDEN, HIDDEN], [0, 1], [HIDDEN, HIDDEN], [3, 4], [HIDDEN, 7], [0, 1]]
    assert batch.given.actions.tolist() == [[-1, -1], [0, 1], [-1, -1], [0, 1], [-1, 1], [0, 1]]
    assert batch.codes[0][:, 0, 0].tolist() == [0, 2, 3, 5, 8, 2]


def test_no_window_crosses_a_gap():
    batch = Windows(codes_of((5,), gap=1), 2).batch(range(5))
    assert [frame[:, 0, 0].tolist() for frame in batch.given.codes] == [[-1, -1, -1, -1, 2], [-1, 0, -1, 2, 3]]


def test_codes_that_do_not_say_where_a_frame_belongs_are_refused():
    codes = codes_of()
    del codes.columns["episode"]
    with pytest.raises(InputError, match="no columns episode and frame"):
        Windows(codes, 2)


@pytest.fixture
def walk(monkeypatch, tmp_path):
    pytest.importorskip("vizdoom")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(doom, "PARTS", {"train": (0, 30), "test": (1, 20)})
    monkeypatch.chdir(tmp_path)
    return load_images("vizdoom", None, "train", (24,))


def test_rendered_frames_are_the_same_each_time_and_leave_no_file_behind(walk, tmp_path):
    assert walk.images.shape == (30, 3, 24, 24) and walk.images.flatten(1).float().std(1).min() > 0
    assert [len(column) for column in walk.columns.values()] == [30] * 4 and len(walk.actions) == 5
    kept = load_images("vizdoom", None, "train", (24,))
    again = doom.render(0, 30, (24, 24))
    assert torch.equal(walk.images, kept.images) and torch.equal(walk.images, again.images)
    assert walk.fingerprint() == kept.fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_without_vizdoom_a_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(
        InputError, match=r'`dataset` vizdoom needs the vizdoom package: pip install "codegrid\[video\]"'
    ):
        load_images("vizdoom")


def test_train_and_test_are_other_walks(walk):
    test = load_images("vizdoom", None, "test", (24,))
    assert len(test) == 20 and not any((walk.images == frame).flatten(1).all(1).any() for frame in test.images)
    whole = load_images("vizdoom", None, "all", (24,))
    assert len(whole) == 50 and whole.columns["episode"].unique().tolist() == [0, 1]
