"""Video files as data: how they are read, matched with tables of actions, and refused."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid import load_images
from codegrid.data.video_files import read_video, write_film
from codegrid.errors import InputError

av = pytest.importorskip("av")
CODECS = {".mp4": ("libx264", "yuv420p"), ".webm": ("libvpx", "yuv420p"), ".avi": ("mpeg4", "yuv420p")}


def shades_of(count, first=0, side=16):
    """Frames (count, side, side, 3) that get brighter, whose upper half is black."""
    frames = np.repeat(np.arange(count, dtype=np.uint8) * 12 + 20 + first, 3 * side * side)
    frames = frames.reshape(count, side, side, 3)
    frames[:, : side // 2] = 0
    return frames


def write_video(path, frames):
    """Write frames (n, H, W, 3) uint8 as a video of the format that its ending names."""
    if path.suffix == ".gif":
        first, *others = map(Image.fromarray, frames)
        return first.save(path, save_all=True, append_images=others)
    codec, pixels = CODECS[path.suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=5, options={"crf": "4", "b": "1000000"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_walks(root, lengths=(3, 4, 2), endings=(".mp4", ".gif", ".avi"), in_each=False):
    """Episodes as video files; the actions are left and right in turn."""
    root.mkdir()
    rows = []
    for number, (length, ending) in enumerate(zip(lengths, endings, strict=True)):
        write_video(root / f"walk {number}{ending}", shades_of(length, 60 * number))
        own = [("left", "right")[frame % 2] for frame in range(length)]
        rows += [f"walk {number},{action}" for action in own]
        if in_each:
            (root / f"walk {number}.csv").write_text("\n".join(["action", *own]))
    if not in_each:
        (root / "actions.csv").write_text("\n".join(["episode,action", *rows]))
    return root


@pytest.mark.parametrize("ending", [".gif", *CODECS])
def test_all_frames_of_a_file_are_read_in_order(tmp_path, ending):
    frames = shades_of(12)
    write_video(tmp_path / f"a{ending}", frames)
    read = read_video(tmp_path / f"a{ending}", None, None)
    assert read.shape == (12, 3, 16, 16)
    assert (read.permute(0, 2, 3, 1).float() - torch.from_numpy(frames).float()).abs().mean() < 4
    small = read_video(tmp_path / f"a{ending}", (8, 4), 1)
    assert small.shape == (12, 1, 8, 4) and small[:, 0, 7, 0].float().diff().min() > 6


def test_a_video_that_was_taken_upright_is_read_upright(tmp_path):
    place = tmp_path / "a.mp4"
    write_video(place, shades_of(2, 200, 32)[:, :, :16])
    one, zero = (65536).to_bytes(4, "big"), bytes(4)
    upright = one + zero * 3 + one
    turned = zero + one + zero + (2**32 - 65536).to_bytes(4, "big") + zero
    head, _, tail = place.read_bytes().rpartition(upright)  # of the track: the first one is of the whole film
    place.write_bytes(head + turned + tail)
    read = read_video(place, None, 1)
    assert read.shape == (2, 1, 16, 32) and read[0, 0, :, :16].min() > 180 and read[0, 0, :, 17:].max() < 20


@pytest.mark.parametrize("shape", [(5, 3, 16, 16), (5, 3, 17, 15)])
def test_a_film_is_read_back_as_it_was_written(tmp_path, shape):
    frames = torch.from_numpy(shades_of(5, side=17)).permute(0, 3, 1, 2)[:, :, : shape[2], : shape[3]]
    write_film(tmp_path / "a.mp4", frames, 150)
    read = read_video(tmp_path / "a.mp4", None, None)
    assert (read[:, :, : shape[2], : shape[3]].float() - frames.float()).abs().mean() < 4
    with av.open(str(tmp_path / "a.mp4")) as film:
        assert float(film.streams.video[0].average_rate) == pytest.approx(1000 / 150)


@pytest.mark.parametrize("in_each", [False, True], ids=["one table", "a table each"])
def test_frames_of_video_files_know_their_episode_place_and_action(tmp_path, in_each):
    images = load_images("frames", write_walks(tmp_path / "walks", in_each=in_each), "all")
    assert images.actions == ("left", "right") and len(images) == 9 and "3 episodes" in str(images.found)
    walks = [int(file[len("walk ")]) for file in images.files]
    frames, actions, episodes = (images.columns[name].tolist() for name in ("frame", "actions", "episode"))
    expected = torch.tensor([20 + 60 * walk + 12 * frame for walk, frame in zip(walks, frames, strict=True)])
    assert (images.images[:, 0, 14, 4] - expected).abs().max() < 9
    assert actions == [frame % 2 for frame in frames]
    assert len(set(zip(walks, episodes, strict=True))) == 3 == len(set(episodes))
    train, test = (load_images("frames", tmp_path / "walks", split) for split in ("train", "test"))
    assert len(train) + len(test) == 9 and len(test) in (2, 3, 4)


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def test_unreadable_videos_are_listed_or_left_out(tmp_path):
    root = write_walks(tmp_path / "walks")
    cut(root / "walk 0.mp4", 0.5)
    (root / "walk 2.avi").write_text("no video")
    with pytest.raises(InputError, match=r"walk 0\.mp4 .*; 1 more cannot be read: walk 2\.avi"):
        load_images("frames", root, "all")
    left = load_images("frames", root, "all", skip_unreadable=True)
    assert len(left) == 4 and left.actions == ("left", "right")
    assert "2 unreadable (walk 0.mp4, walk 2.avi)" in str(left.found)


def test_a_playlist_under_the_name_of_a_video_is_not_followed(tmp_path):
    write_video(tmp_path / "a.mp4", shades_of(2))
    (tmp_path / "b.avi").write_text("ffconcat version 1.0\nfile 'a.mp4'\n")
    with pytest.raises(InputError, match=r"b\.avi is not a readable video"):
        read_video(tmp_path / "b.avi", None, None)


BAD = {
    "a row too few": (
        lambda root: (root / "actions.csv").write_text((root / "actions.csv").read_text().rpartition("\n")[0]),
        r"1 actions for 2 frames of walk 2\.avi: give each frame a row",
    ),
    "an unknown episode": (
        lambda root: (root / "actions.csv").open("a").write("\nwalk 9,left"), "no such folder of frames or video"
    ),
    "a video of another size": (
        lambda root: write_video(root / "walk 1.gif", shades_of(4, side=18)),
        r"walk 1\.gif is 18×18, walk 0\.mp4 is 16×16: give `image_size`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage,reason", BAD.values(), ids=BAD)
def test_videos_and_tables_that_do_not_match_are_refused_in_a_line(tmp_path, damage, reason):
    root = write_walks(tmp_path / "walks")
    damage(root)
    with pytest.raises(InputError, match=reason):
        load_images("frames", root, "all")


def test_videos_of_several_sizes_are_brought_to_one(tmp_path):
    root = write_walks(tmp_path / "walks")
    write_video(root / "walk 1.gif", shades_of(4, side=18))
    assert load_images("frames", root, "all", (8,)).images.shape == (9, 3, 8, 8)


def test_video_files_beside_folders_of_frames_are_left_out_and_said(tmp_path):
    root = write_walks(tmp_path / "walks")
    (root / "actions.csv").unlink()
    (root / "walk 0").mkdir()
    Image.fromarray(shades_of(1)[0]).save(root / "walk 0" / "1.png")
    images = load_images("frames", root, "all")
    assert len(images) == 1 and "3 beside folders of frames (walk 0.mp4, walk 1.gif, walk 2.avi)" in str(images.found)


def test_without_the_package_only_gifs_are_read_and_a_line_says_what_to_install(tmp_path, monkeypatch):
    root = write_walks(tmp_path / "walks")
    monkeypatch.setitem(sys.modules, "av", None)
    assert len(read_video(root / "walk 1.gif", None, None)) == 4
    with pytest.raises(InputError, match=r'reading walk 0\.mp4 needs the av package: pip install "codegrid\[video\]"'):
        load_images("frames", root, "all", skip_unreadable=True)
