"""The viewer of videos: a test video goes on under the actions that a visitor chooses, beside what really followed."""

import base64
import io
import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageSequence
from small_priors import build_prior
from test_videos import write_frames

from codegrid import TwoStagePipeline, load_images
from codegrid.codes import Signal
from codegrid.data.images import to_float
from codegrid.data.videos import FramesInMemory
from codegrid.errors import InputError
from codegrid.pipelines.generation.futures import continue_videos
from codegrid.pipelines.generation.starts import read_from_codes
from codegrid.sampling_config import SamplingConfig
from codegrid.stage1_vqvae.tokenizer import VQVAE

pytest.importorskip("gradio")
import gradio
from test_view_page import Visitor, serve_parts

from codegrid.pipelines.viewer.answers import Answers
from codegrid.pipelines.viewer.videos import Videos, find_starts
from codegrid.pipelines.viewer.wording import told

GIVEN, KNOWN = 3, 10
OWN = (1, 0, 1, 0)  # temperature, top-k, top-p, seed


def make_pipeline(num_actions=2):
    """An untrained tokenizer of grey 8×8 frames, and a prior over them on which actions tell."""
    torch.manual_seed(0)
    tokenizer = VQVAE(Signal("image", 1, (8, 8)), hidden_channels=8, num_embeddings=16, embedding_dim=8).eval()
    options = {"num_actions": num_actions, "context_frames": GIVEN, "decided": 50}
    prior = build_prior("video", layout=tokenizer.layout, **options).float()
    for layer in prior.modules():
        if isinstance(layer, torch.nn.Embedding):
            layer.weight.data *= 8  # so that actions, too, make a difference
    prior.provenance = {"tokenizer_fingerprint": tokenizer.fingerprint(), "actions": ["left", "right"][:num_actions]}
    return TwoStagePipeline(tokenizer, prior)


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


def starts_of(pipeline, length=20, frames=KNOWN):
    """Starts in a video of random codes."""
    numbers, random = torch.arange(length), torch.Generator().manual_seed(0)
    columns = {"episode": torch.zeros(length, dtype=torch.int64), "frame": numbers, "actions": numbers // 2 % 2}
    (grid,) = pipeline.layout
    codes = torch.randint(0, 16, (length, *grid.shape), generator=random)
    return read_from_codes(FramesInMemory((codes,), pipeline.layout, columns), GIVEN, frames, at_most=3)


def make_videos(pipeline, starts):
    return Videos(Answers(pipeline.tokenizer, pipeline, None), pipeline, starts)


@pytest.fixture
def videos(pipeline):
    return make_videos(pipeline, starts_of(pipeline))


def pictures_in(words):
    """The pictures in some HTML by the class of their figure."""
    found = re.findall(r'<figure class="(\w+)[^>]*>.*?src="data:image/\w+;base64,([^"]*)"', words)
    return {kind: Image.open(io.BytesIO(base64.b64decode(content))) for kind, content in found}


def last(steps):
    return list(steps)[-1]


@pytest.mark.parametrize("written,frames,expected", [
    ("", 4, None), ("right", 4, [1, 1, 1, 1]), ("1, left,right", 9, [1, 0, 1]),
])  # fmt: skip
def test_a_video_goes_on_as_the_command_draws_it_under_the_same_actions(videos, pipeline, written, frames, expected):
    start = videos.starts.rows([1])
    actions = start.next_actions[:, :4] if expected is None else torch.tensor([expected])
    settings = SimpleNamespace(
        configs=lambda count: [SamplingConfig(temperature=0.7)], seed=5, batch_size=8, backend="auto"
    )
    (codes,) = continue_videos(pipeline, start, actions, settings)
    steps = list(videos.roll_out(1, written, frames, 0.7, 0, 1, 5))
    assert [progress for *_, progress in steps][-1] == "100% drawn" and len(steps) == actions.shape[1]
    assert [len(partial.images) for _, partial, _ in steps] == list(range(1, len(steps) + 1))
    assert torch.equal(steps[-1][1].codes[0], codes[0])


def test_actions_tell_and_are_named_on_the_page(videos):
    left, right = (last(videos.roll_out(0, action, 4, *OWN)) for action in ("left", "right"))
    assert not torch.equal(left[1].codes[0], right[1].codes[0])
    assert "3 given frames and 4 new ones: left ×4" in left[0] and "right ×4" in right[0]
    assert videos.add("", "left") == "left" and videos.add("left, ", "right") == "left, right"


def test_the_film_plays_the_real_future_beside_the_drawn_one_if_it_is_known(pipeline, videos):
    words, partial, _ = last(videos.roll_out(0, "", 4, *OWN))
    film, strip = (pictures_in(words)[kind] for kind in ("film", "strip"))
    assert film.size == (256 + 8 + 256, 256) and "Left: what followed; right: drawn." in words
    assert sum(frame.info["duration"] for frame in ImageSequence.Iterator(film)) == (GIVEN + 4) * 150
    alone = make_videos(pipeline, starts_of(pipeline, GIVEN + 1, 1)._replace(next_codes=(), next_actions=None))
    words, *_ = last(alone.roll_out(0, "left", 4, *OWN))
    assert pictures_in(words)["film"].size == (256, 256) and "what followed" not in words
    assert pictures_in(words)["strip"].height < strip.height
    saved = videos.download(partial).removeprefix("data:image/gif;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(saved))).size == (256, 256)


def test_a_film_comes_only_when_all_is_drawn(videos):
    (first, *_), *_ = videos.roll_out(0, "", 4, *OWN)
    assert pictures_in(first).keys() == {"strip"}


def test_a_prior_without_actions_needs_none():
    pipeline = make_pipeline(num_actions=0)
    words, partial, _ = last(make_videos(pipeline, starts_of(pipeline)).roll_out(0, "", 5, *OWN))
    assert len(partial.images) == 5 and "5 new ones<" in words


REFUSED = [
    ("up", 4, "Actions 'up': the actions are 0 to 1 (left, right)"),
    ("turns.txt", 4, "Actions 'turns.txt': the actions are 0 to 1"),  # no file of the server is read
    ("left", 51, "New frames 51"),
    ("", 11, "Actions: only 10 of the data are known: give some, such as left"),
]


@pytest.mark.parametrize("written,frames,words", REFUSED)
def test_what_cannot_be_drawn_is_refused_in_the_words_of_the_page(
    videos, written, frames, words, tmp_path, monkeypatch
):
    (tmp_path / "turns.txt").write_text("left")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(gradio.Error) as refused:
        list(told(videos.roll_out)(0, written, frames, *OWN))
    assert words in str(refused.value)
    with pytest.raises(InputError, match="nothing is drawn yet"):
        videos.download(None)


def test_the_page_has_a_section_of_videos_whose_parts_are_wired(pipeline):
    with serve_parts(pipeline.tokenizer, pipeline, starts=starts_of(pipeline)) as (page, address):
        visitor = Visitor(page, address)
        assert visitor.use("click", "roll_out", [None, "right", 2, *OWN])[-1][2] == "100% drawn"
        labels = [part.value for part in page.blocks.values() if isinstance(part, gradio.Button)]
        assert {"+ left", "+ right", "Clear actions", "Continue", "Stop videos"} <= set(labels)
        assert visitor.use("click", "add", ["left"])[-1][0] == "left, left"


def test_test_frames_of_a_data_set_can_be_continued_and_pictures_alone_cannot(pipeline, tmp_path):
    root = write_frames(tmp_path / "walks", (14, 15, 16))
    starts = find_starts(pipeline, None, "frames", str(root))
    images = load_images("frames", root, "test", (8,), 1)
    rows = [starts.frames[0] + distance for distance in range(1 - GIVEN, KNOWN + 1)]
    codes = pipeline.tokenizer.encode(to_float(images.batch(rows).images))[0]
    assert torch.equal(torch.cat([starts.codes[0][0], starts.next_codes[0][0]]), codes)
    assert starts.next_actions[0].tolist() == images.columns["actions"][rows[GIVEN - 1 : -1]].tolist()
    for number in range(3):
        Image.new("L", (8, 8)).save(root / "walk 0" / f"{number}.png")
    assert find_starts(pipeline, None, str(root / "walk 0")) is None


def test_actions_that_the_prior_does_not_know_are_left_out(pipeline, tmp_path):
    root = write_frames(tmp_path / "walks", (14, 15, 16), names=("up", "down"))
    starts = find_starts(pipeline, None, "frames", str(root))
    assert starts.next_codes and starts.next_actions is None
