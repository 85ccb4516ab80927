"""Videos through the commands: training on folders of frames, export, continuing under actions, figures."""

import csv
import json
import sys
from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from test_videos import write_frames

from codegrid import load
from codegrid.codes import Grid
from codegrid.data.codes import CodeDataset
from codegrid.data.splits import hold_out
from codegrid.data.video_files import read_video
from codegrid.data.videos import FramesInMemory, Windows
from codegrid.errors import InputError
from codegrid.pipelines.evaluation.reconstruction import prior_inputs
from codegrid.pipelines.generation.starts import written_actions
from codegrid.stage2_prior import VideoPrior

TOKENIZER = ("--hidden-channels", 8, "--embedding-dim", 4, "--num-embeddings", 8, "--num-residual-blocks", 1)
PRIOR = (
    "--model", "video", "--channels", 8, "--num-layers", 2, "--context-frames", 3, "--frame-channels", 4,
    "--condition-channels", 8, "--condition-blocks", 1,
)  # fmt: skip
BRIEF = ("--steps", 2, "--batch-size", 4, "--precision", "fp32", "--validate-every", 2)


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("walks"), (16, 17, 15))


def call(name, *flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [f"codegrid-{name}", *map(str, flags)])
        import_module(f"codegrid.pipelines.{name}").main()


@pytest.fixture(scope="module")
def run(walks, tmp_path_factory):
    """A run on three short walks, one of which is held out."""
    folder = tmp_path_factory.mktemp("run")
    call("train_tokenizer", "--dataset", "frames", "--data-root", walks, *TOKENIZER, *BRIEF, "--run", folder)
    call("train_prior", *PRIOR, *BRIEF, "--run", folder)
    return folder


def test_a_run_on_folders_of_frames_ends_in_films_and_figures(run, run_script, tmp_path):
    codes = CodeDataset(run / "codes")
    assert codes.provenance["actions"] == ["left", "right"] and codes.header.columns.keys() >= {"actions", "episode"}
    prior = load(run / "prior")
    assert prior.num_actions == 2 and prior.provenance["actions"] == ["left", "right"]

    out = tmp_path / "futures"
    start = ("--run", run, "--start", run / "codes_test", "--output", out, "--num-samples", 2, "--frames", 5)
    assert run_script("sample", *start).code == 0
    assert np.load(out / "futures.npz")["frames"].shape == (2, 5, 8, 8, 1)
    with Image.open(out / "future-001.gif") as film:  # equal frames are one that is shown for longer
        shown = sum(frame.info["duration"] for frame in ImageSequence.Iterator(film))
        assert film.size == (256, 256) and shown == (3 + 5) * 150
    turns = json.loads((out / "futures.json").read_text())["actions"][0]
    assert len(turns) == 5 and all(one != next_one for one, next_one in pairwise(turns))  # those of the data
    assert "nothing to do" in run_script("sample", *start).out

    assert run_script("evaluate", "--run", run, "--output", tmp_path / "figures").code == 0
    figures = json.loads((tmp_path / "figures" / "metrics.json").read_text())
    names = ("future", "copied", "shuffled", "decoded")
    assert {f"{name}_psnr_{ahead}" for name in names for ahead in (1, 2, 5, 10)} <= figures.keys()
    assert figures["action_gain_error"] >= 0 and figures["measured_on"]["future_psnr_1"]["given_frames"] == 3
    assert run_script("doctor", "--run", run).code in (0, 1)


def test_users_choose_actions_by_name_number_or_file_and_start_from_pictures(run, run_script, walks, tmp_path):
    (tmp_path / "turns.txt").write_text("right\nleft\n1\n")

    def draw(name, *flags):
        done = run_script("sample", "--run", run, "--output", tmp_path / name, "--num-samples", 2, *flags)
        assert done.code == 0, done.err
        return np.load(tmp_path / name / "futures.npz")

    codes = ("--start", run / "codes_test", "--start-at", 5)
    by_name = draw("names", *codes, "--actions", "right", "left", "right")
    by_file = draw("file", *codes, "--actions", tmp_path / "turns.txt")
    assert by_name["actions"].tolist() == [[1, 0, 1]] * 2 == by_file["actions"].tolist()
    assert (by_name["frames"] == by_file["frames"]).all()
    assert draw("pictures", "--start", walks / "walk 0", "--actions", "0")["frames"].shape == (2, 10, 8, 8, 1)
    film = tmp_path / "names" / "future-000.gif"
    assert draw("film", "--start", film, "--actions", "0", "--frames", 2)["frames"].shape == (2, 2, 8, 8, 1)


def test_films_are_written_as_mp4_too_if_that_is_asked_for(run, run_script, tmp_path, monkeypatch):
    pytest.importorskip("av")
    asked = ("--run", run, "--start", run / "codes_test", "--num-samples", 1, "--frames", 2, "--format", "mp4")
    assert run_script("sample", *asked, "--output", tmp_path / "films").code == 0
    assert read_video(tmp_path / "films" / "future-000.mp4", None, 1).shape == (3 + 2, 1, 256, 256)
    assert (tmp_path / "films" / "future-000.gif").is_file()
    monkeypatch.setitem(sys.modules, "av", None)
    refused = run_script("sample", *asked, "--output", tmp_path / "new")
    assert refused.code == 2 and '--format mp4 needs the av package: pip install "codegrid[video]"' in refused.err
    assert not (tmp_path / "new").exists()


REFUSED = [
    (("--actions", "up"), "'up': the actions are 0 to 1 (left, right)"),
    (("--actions", "2"), "'2': the actions are 0 to 1 (left, right)"),
    (("--actions", "0", "1", "--frames", "3"), "2 for 3 --frames: give one for each, or one for all"),
    (("--actions", "missing.txt"), "there is no such file"),
    (("--start-at", "99"), "--start-at 99: the frames are 0 to"),
    (("--frames", "99"), "no episode has 102 frames in a row"),
]


def test_actions_and_frames_that_are_not_there_are_refused_in_a_line(run, run_script, tmp_path):
    for flags, reason in REFUSED:
        refused = run_script("sample", "--run", run, "--start", run / "codes", "--output", tmp_path / "new", *flags)
        assert refused.code == 2 and reason in refused.err and refused.err.count("\n") <= 2, refused.err
    assert not (tmp_path / "new").exists()
    elsewhere = run_script("sample", "--run", run, "--start", tmp_path / "new", "--output", tmp_path / "out")
    assert elsewhere.code == 2 and "there is no such folder" in elsewhere.err


def test_a_table_of_actions_with_an_open_quotation_mark_is_refused(tmp_path):
    (tmp_path / "cut.csv").write_text('action\nleft\n"' + "right\n" * 100)
    before = csv.field_size_limit(100)
    try:
        with pytest.raises(InputError, match="it is not a table"):
            written_actions([str(tmp_path / "cut.csv")], ["left", "right"])
    finally:
        csv.field_size_limit(before)


def test_whole_episodes_are_validated_on(run):
    training, validation = hold_out(CodeDataset(run / "codes"), None)
    ours, theirs = (set(part.column("episode").tolist()) for part in (training, validation))
    assert ours and theirs and not ours & theirs


def test_the_action_at_a_frame_leads_to_the_next_one():
    """A world in which an action says how far every code moves is learnt with that pairing, and with no other."""
    steps = torch.from_numpy(np.random.default_rng(0).integers(0, 2, 200))
    world = (1 + steps.cumsum(0)).roll(1) % 4
    world[0] = 1
    columns = {"episode": torch.zeros(200, dtype=torch.int64), "frame": torch.arange(200), "actions": steps}
    grid = world[:, None, None].expand(-1, 1, 2)
    bits = {}
    for late in (0, 1):
        moved = {**columns, "actions": steps.roll(late)}
        windows = Windows(FramesInMemory((grid,), (Grid((1, 2), 4),), moved), 1)
        torch.manual_seed(0)
        prior = VideoPrior(
            (Grid((1, 2), 4),), num_actions=2, context_frames=1, channels=8, num_layers=2, first_kernel=3,
            condition_channels=16, condition_blocks=1, frame_channels=16, dropout=0.0, frame_dropout=0.0,
            coarse_dropout=0.0,
        )  # fmt: skip
        optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
        codes, given = prior_inputs(prior, windows.batch(range(1, 200)))
        for _ in range(50):
            loss = prior(codes, given).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        bits[late] = loss.item() / np.log(2)
    assert bits[0] < 0.02 and bits[1] > 0.3
